"""What stands in a comparison: complete systems, such as are not, and runs of earlier versions."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from compare_runs import FakeRun, misheard, recognized, sentences, some_runs, two_students
from typer.testing import CliRunner

from mvqkd.pipeline.cli import app
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.stages.compare import compare_runs
from mvqkd.pipeline.stages.scored import against_others, read_errors

SAID = sentences(speakers=12, each=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FakeRun]:
    return some_runs(tmp_path_factory.mktemp("runs"), SAID)


def test_systems_of_several_runs_stand_side_by_side(runs: list[FakeRun]) -> None:
    found = compare_runs([each.run for each in runs])
    assert [(s["name"], s["state"]) for s in found.systems] == [
        ("baseline", "decoded"),
        ("mvq8", "decoded"),
        ("mvq4", "decoded"),
        ("mvq16", "decoded"),
        ("half", "begun"),
        ("later", "not trained"),
    ]
    assert (found.reference, found.best) == ("baseline", "mvq8")
    assert found.summary[0].startswith("mvq8 makes ") and found.summary[0].endswith(
        "fewer word errors than baseline"
    )
    assert found.summary[-1] == "Not complete, and shown as far as known: half and later."
    by_name = {s["name"]: s for s in found.systems}
    assert "mvqkd distill --student half" in by_name["half"]["note"]
    assert "mvqkd distill --student later" in by_name["later"]["note"]
    assert by_name["half"]["training"]["steps"] == 1000 and len(by_name["half"]["curve"]) == 20
    assert [by_name[name]["targets"] for name in ("baseline", "mvq8", "mvq4", "later")] == [
        None,
        "8 codebooks, 50 Hz",
        "4 of 8 codebooks, 50 Hz",
        "16 codebooks",
    ]
    score = by_name["mvq8"]["score"]
    assert score["substitutions"] + score["deletions"] + score["insertions"] == round(
        score["wer"] * score["words"]
    )
    assert score["wer_low"] < score["wer"] < score["wer_high"]
    assert (score["interval_over"], score["interval_units"]) == ("speakers", 12)
    assert len(found.pairs) == 4 * 3
    pair = next(p for p in found.pairs if (p["system"], p["other"]) == ("mvq8", "baseline"))
    assert pair["is_certain"] and pair["relative_low"] < pair["relative_reduction"] < pair["relative_high"]
    assert pair["relative_reduction"] == pytest.approx(1 - score["wer"] / by_name["baseline"]["score"]["wer"])


def test_settings_in_which_systems_differ_and_no_others(runs: list[FakeRun]) -> None:
    settings = {row["key"]: row["values"] for row in compare_runs([each.run for each in runs]).settings}
    assert set(settings) == {
        "student.encoder_dim",
        "distill.loss_scale",
        "distill.codebooks",
        "quantizer.num_codebooks",
    }
    assert settings["distill.codebooks"]["mvq4"] == 4 and settings["distill.codebooks"]["mvq8"] is None
    assert settings["student.encoder_dim"]["mvq16"] == 192


def test_tables_say_what_they_take_and_who_learned_from_them(runs: list[FakeRun]) -> None:
    first, second = compare_runs([each.run for each in runs]).tables
    assert first["bytes_per_hour"] == pytest.approx(8 * 1.02 * 50 * 3600)
    assert first["times_smaller"] == pytest.approx(512 * 4 / 8 / 1.02)
    assert (first["systems"], second["systems"]) == (["mvq8", "mvq4"], ["mvq16", "half", "later"])
    assert (second["bytes_per_index"], second["num_codebooks"]) == (1.02, 16)


def test_the_worst_utterances_come_with_alignments_that_count_the_same(runs: list[FakeRun]) -> None:
    found = compare_runs([each.run for each in runs], worst=5)
    assert found.num_utterances == len(SAID) and 5 <= len(found.utterances) <= 10
    totals = [u["errors"] for u in found.utterances]
    assert totals == sorted(totals, reverse=True)
    for utterance in found.utterances:
        assert [of["system"] for of in utterance["systems"]] == ["baseline", "mvq8", "mvq4", "mvq16"]
        for of in utterance["systems"]:
            assert sum(kind != "equal" for kind, *_ in of["alignment"]) == of["errors"]
            said = [said for _, said, _ in of["alignment"] if said is not None]
            heard = [heard for *_, heard in of["alignment"] if heard is not None]
            assert (" ".join(said), " ".join(heard)) == (utterance["reference"], of["hypothesis"])


def test_speakers_are_those_of_the_errors(runs: list[FakeRun]) -> None:
    found = compare_runs([each.run for each in runs])
    assert len(found.speakers) == 12 and {row["utterances"] for row in found.speakers} == {5}
    baseline = next(s for s in found.systems if s["name"] == "baseline")["score"]
    errors = sum(row["wer"]["baseline"] * row["words"] for row in found.speakers)
    assert errors == pytest.approx(baseline["wer"] * baseline["words"])


def test_students_of_one_name_are_told_apart_by_their_runs(tmp_path: Path) -> None:
    fakes = [two_students(tmp_path / part, "same") for part in ("a", "b")]
    fakes.append(two_students(tmp_path, "other"))
    found = compare_runs([fake.run for fake in fakes], students=["mvqkd"])
    assert [s["name"] for s in found.systems] == ["same-1/mvqkd", "same-2/mvqkd", "other/mvqkd"]
    pair = next(p for p in found.pairs if (p["system"], p["other"]) == ("same-1/mvqkd", "other/mvqkd"))
    assert (pair["difference"], pair["better"], pair["is_certain"]) == (0, 0.5, False)
    assert (
        found.summary[-1]
        == "The difference between same-1/mvqkd and same-2/mvqkd and other/mvqkd may be chance."
    )


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    with pytest.raises(StageError, match="no student who in these runs; they have baseline, mvqkd"):
        compare_runs([fake.run], students=["who"])
    with pytest.raises(StageError, match="no system 'who'; there are baseline, mvqkd"):
        compare_runs([fake.run], reference="who")
    empty = FakeRun(tmp_path, "empty", {"one": {}})
    found = compare_runs([empty.run])
    assert found.summary == [
        "No system has been decoded yet",
        "Not complete, and shown as far as known: one.",
    ]
    assert (found.pairs, found.utterances, found.tables, found.best) == ([], [], [], None)
    with pytest.raises(
        StageError, match="one cannot be the reference: `mvqkd distill --student one` trains it"
    ):
        compare_runs([empty.run], reference="one")


def test_systems_of_other_test_parts_are_compared_on_what_both_recognized(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    results = misheard(SAID, 0.08, seed=3)
    other = recognized(results[0].cut_id, results[0].speaker, "another transcript", "another transcript")
    fake.decoded("mvqkd", [other, *results[1:40]])
    found = compare_runs([fake.run])
    assert {pair["utterances"] for pair in found.pairs} == {39}
    assert any("Not all systems recognized the same utterances" in note for note in found.notes)
    fake.decoded("mvqkd", [other])
    found = compare_runs([fake.run])
    assert found.pairs == [
        {"system": "baseline", "other": "mvqkd", "utterances": 0},
        {"system": "mvqkd", "other": "baseline", "utterances": 0},
    ]
    assert found.summary[0] == "mvqkd has the lowest word error rate, 0.00%"


def test_few_speakers_and_none_are_told(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    for said, words in (
        (sentences(speakers=3, each=20), "fewer than 10 speakers"),
        ([(cut, None, text) for cut, _, text in SAID], "Intervals are over utterances"),
    ):
        for student in ("baseline", "mvqkd"):
            fake.decoded(student, misheard(said, 0.1, seed=1))
        assert any(words in note for note in compare_runs([fake.run]).notes)


def test_a_decoding_is_compared_with_the_others_of_its_run(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    report = fake.run.reports.read("decode", "mvqkd")
    mine, left_out = read_errors(fake.run, "mvqkd", report)
    assert (len(mine), left_out) == (len(SAID), [])
    against = against_others(fake.run, "mvqkd", mine)
    fake.run.reports.write("decode", {**report, "against": against}, "mvqkd")
    figures = fake.run.reports.whole()["students"]["mvqkd"]["score"]["against"]["baseline"]
    assert figures["relative_low"] < figures["relative_reduction"] < figures["relative_high"]
    assert figures["better"] == 1.0
    # The other one is decoded anew, with other errors: what was said of the old ones is no longer true.
    fake.decoded("baseline", misheard(SAID, 0.3, seed=8))
    assert fake.run.reports.whole()["students"]["mvqkd"]["score"]["against"] == {}
    # And one that recognized other utterances is no pair.
    fake.decoded("baseline", misheard(SAID[:30], 0.3, seed=8))
    assert against_others(fake.run, "mvqkd", mine) == {}


def test_the_command_writes_a_page_and_the_same_as_json(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    page = tmp_path / "out" / "page.html"
    result = CliRunner().invoke(
        app, ["compare", str(fake.file), "-o", str(page), "--utterances", "3", "--json"]
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.strip().splitlines()[-1])
    assert printed == json.loads(page.with_suffix(".json").read_text())
    now = asdict(compare_runs([fake.run], worst=3))
    assert {**printed, "made": ""} == json.loads(json.dumps({**now, "made": ""}))
    assert printed["summary"][0] in page.read_text()
    shown = CliRunner().invoke(app, ["compare", str(fake.file), "-o", str(page)])
    assert "fewer word errors than baseline" in shown.stdout and str(page) in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "-o", "page.pdf"], "the page is HTML, so name it so"),
        (["{run}", "{run}"], "a run file is named twice"),
        (["{run}", "--reference", "who"], "no system 'who'"),
        (["nowhere.yaml"], "nowhere.yaml: no such run file"),
    ],
)
def test_wrong_arguments_are_a_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    fake = FakeRun(tmp_path, "one", {"one": {}})
    result = CliRunner().invoke(app, ["compare", *(each.format(run=fake.file) for each in arguments)])
    assert result.exit_code == 2 and message in result.stderr
