"""What is known of one system: how far it is, its curve, its score, also from reports of earlier versions."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from compare_runs import NONE, FakeRun, two_students

from mvqkd.pipeline.show.compare_page import render
from mvqkd.pipeline.stages.compare import compare_runs
from mvqkd.pipeline.stages.compare_system import MOST_POINTS, thinned, training_figures


def test_a_student_that_was_trained_again_is_not_decoded(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    report = fake.run.reports.read("distill", "mvqkd")
    fake.run.reports.write("distill", {**report, "digest": "of another seed"}, "mvqkd")
    system = compare_runs([fake.run]).systems[1]
    assert (system["state"], system["score"]) == ("trained", None)
    assert "not decoded since it was trained; `mvqkd decode --student mvqkd`" in system["note"]


def test_a_run_file_that_has_changed_since_is_told(tmp_path: Path) -> None:
    two_students(tmp_path)
    again = FakeRun(tmp_path, "two", {"baseline": NONE, "mvqkd": {"distill": {"epochs": 7}}})
    system = compare_runs([again.run]).systems[1]
    assert system["state"] == "decoded"
    assert "the run file has changed since it was trained: distill.epochs 30, now 7" in system["note"]


def test_a_student_of_a_later_version_is_shown_with_what_it_says(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    path = tmp_path / "two/students/mvqkd/student.json"
    record = json.loads(path.read_text())
    record["student"]["of_tomorrow"] = 3
    record["distill"] |= {"also_new": "x", "cache_mb": 5}
    path.write_text(json.dumps(record))
    found = compare_runs([fake.run])
    assert found.systems[1]["state"] == "decoded"
    assert "student.of_tomorrow 3, now None" in found.systems[1]["note"]
    assert "cache_mb" not in found.systems[1]["note"]
    assert {"student.of_tomorrow", "distill.also_new"} <= {row["key"] for row in found.settings}


def test_errors_of_another_decoding_are_not_mixed_with_a_report(tmp_path: Path) -> None:
    fake = two_students(tmp_path)
    lines = (tmp_path / "two/students/mvqkd/errors.jsonl").read_text().splitlines()
    (tmp_path / "two/students/mvqkd/errors.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    system = compare_runs([fake.run]).systems[1]
    assert system["score"] is None and "`mvqkd decode --student mvqkd` makes both anew" in system["note"]
    (tmp_path / "two/students/mvqkd/errors.jsonl").write_text(lines[0] + "\n{nonsense\n")
    assert "errors.jsonl, line 2: not the result" in compare_runs([fake.run]).systems[1]["note"]
    (tmp_path / "two/students/mvqkd/errors.jsonl").unlink()
    assert "errors.jsonl: missing; `mvqkd decode`" in compare_runs([fake.run]).systems[1]["note"]


def test_reports_of_earlier_versions_get_their_intervals(tmp_path: Path) -> None:
    """No kinds of errors and no interval in the report, no lengths in the lines."""
    fake = two_students(tmp_path)
    new = compare_runs([fake.run])
    for student in ("baseline", "mvqkd"):
        report = fake.run.reports.read("decode", student)
        known = ("wer", "cer", "words", "utterances", "left_out", "errors", "digest")
        fake.run.reports.write("decode", {key: report[key] for key in known}, student)
        path = tmp_path / "two/students" / student / "errors.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**line, "duration_s": None}) + "\n" for line in lines))
    old = compare_runs([fake.run])
    assert old.pairs == new.pairs
    for before, after in zip(old.systems, new.systems, strict=True):
        missing = {key: before["score"].get(key) for key in ("hours", "left_out_hours")}
        assert missing == dict.fromkeys(missing)
        assert {**after["score"], **missing} == {**before["score"], **missing}


def test_a_training_that_goes_on_is_known_by_its_lines(tmp_path: Path) -> None:
    """As the log of a training writes them, without a total of steps; those of another training are left alone."""
    fake = FakeRun(tmp_path, "run", {"one": {}})
    point = {
        "transducer_loss": 5.0,
        "head_losses": {"codebook": 3.0},
        "seconds": 9.0,
        "utterances_per_s": 2.0,
    }
    lines = [{"digest": "old", "step": 90, **point}]
    lines += [
        {"digest": "new", "step": step, "done": step / 80, "valid_wer": 0.5, **point} for step in (10, 20)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    fake.run.student("one").replace("training.jsonl", text.encode())
    (system,) = compare_runs([fake.run]).systems
    assert (system["state"], [p["step"] for p in system["curve"]]) == ("begun", [10, 20])
    assert (system["training"]["steps"], system["training"]["done"]) == (20, 0.25)
    assert "digest" not in system["curve"][0]


def test_tables_of_embeddings_are_told_by_their_frames(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path, "run", {"one": {}})
    fake.extracted()
    report = fake.run.reports.read("extract")
    contract = {**report["table"]["contract"], "num_codebooks": 0, "payload": "embeddings", "dim": 512}
    figures = {
        "contract": contract,
        "bytes_per_index": None,
        "bytes_per_frame": 940.0,
        "bytes_per_hour": 1.7e8,
    }
    fake.run.reports.write("extract", {**report, "table": {**report["table"], **figures}})
    (table,) = compare_runs([fake.run]).tables
    assert (table["payload"], table["dim"], table["bytes_per_frame"], table["bytes_per_index"]) == (
        "embeddings",
        512,
        940.0,
        None,
    )
    page = render(asdict(compare_runs([fake.run])))
    assert "embeddings of 512, float16" in page and "940.0 a frame" in page and "2.2 times as much" in page


def test_seconds_of_an_interrupted_training_are_added_up() -> None:
    points: list[dict[str, Any]] = [
        {"step": 10, "seconds": 30.0, "utterances_per_s": 10.0},
        {"step": 20, "seconds": 60.0, "utterances_per_s": 10.0},
        {"step": 30, "seconds": 20.0, "utterances_per_s": 40.0, "wait_share": 0.5},
    ]
    figures = training_figures({}, points, {})
    assert (figures["steps"], figures["seconds"]) == (30, 80.0)
    assert figures["utterances_per_s"] == pytest.approx((60 * 10 + 20 * 40) / 80)
    assert figures["wait_share"] == pytest.approx(0.5 * 20 / 80)
    assert training_figures({}, [], {})["seconds"] is None


def test_long_curves_are_thinned_by_means() -> None:
    points = [
        {
            "step": step,
            "transducer_loss": float(step % 2),
            "head_losses": {"codebook": 2.0 * (step % 2)},
            "new": "key",
        }
        for step in range(1, 1001)
    ]
    few = thinned(points)
    assert len(few) <= MOST_POINTS and few[-1]["step"] == 1000
    assert few[0] == {"step": 5, "transducer_loss": 0.6, "head_losses": {"codebook": 1.2}, "new": "key"}
    assert thinned(points[:7]) == points[:7]
    # How far it has come is no mean, and what is known now and then is the last that was known.
    now_and_then = [
        {"step": step, "done": step / 10, "valid_wer": 0.3 if step == 9 else None} for step in range(1, 11)
    ]
    assert thinned(now_and_then, 2)[-1] == {"step": 10, "done": 1.0, "valid_wer": 0.3}
