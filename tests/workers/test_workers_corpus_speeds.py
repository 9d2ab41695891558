"""Copies at other speeds: what a plan lists, what is extracted, and what training hears, are one audio.

Shape suffixes: C channels, T samples.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording
from lhotse.augmentation import Speed
from lhotse.utils import compute_num_samples, fastcopy
from tiny import objects
from workers_fakes import (
    FakeTeacher,
    cut_of,
    make_contract,
    make_contract_of_embeddings,
    make_cuts,
    make_embedder,
    make_quantizer,
    sound,
    write_manifest,
    write_sound,
)

from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable, check_row_matches
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig
from mvqkd.workers.corpus.speeds import perturbed
from mvqkd.workers.cuts import (
    Planned,
    Refused,
    cut_from_json,
    cut_to_json,
    identity,
    speed_of,
    unperturbed_id,
)
from mvqkd.workers.extract import Extractor
from mvqkd.workers.plan import Plan, existing_plan, read_shard_cuts
from mvqkd.workers.planner import make_plan
from mvqkd.workers.sample import draw_sample

SPEEDS = (0.9, 1.0, 1.1)


def corpus_of(folder: Path, cuts: list[MonoCut], **changed: object) -> Corpus:
    write_manifest(folder / "c.jsonl", cuts)
    speeds = changed.pop("speeds", SPEEDS)
    config = CorpusConfig(format="cuts", root=str(folder), train="c.jsonl", test="c.jsonl", **changed)  # type: ignore[arg-type]
    return Corpus(config, sample_rate_hz=16_000, speeds=speeds)  # type: ignore[arg-type]


def plan_of(folder: Path, corpus: Corpus, *, hours: float = 1.0) -> Plan:
    return make_plan(
        corpus.planned("train"),
        open_location(str(folder)),
        shard_hours=hours,
        settings=corpus.config.plan_settings("train", sample_rate_hz=16_000, speeds=corpus.speeds),
        root=corpus.root,
    )


def test_copies_are_those_of_lhotse(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.6, 0.43], texts=["one", None])
    found = list(corpus_of(tmp_path, cuts).cuts("train"))
    assert [cut.id for cut in found if isinstance(cut, MonoCut)] == [
        "u000_sp0.9", "u000", "u000_sp1.1", "u001_sp0.9", "u001", "u001_sp1.1",
    ]  # fmt: skip
    for index, speed in ((0, 0.9), (2, 1.1), (3, 0.9), (5, 1.1)):
        (expected,) = CutSet.from_cuts([cuts[index // 3]]).perturb_speed(speed)
        copy = found[index]
        assert isinstance(copy, MonoCut) and copy.to_dict() == expected.to_dict()
        assert speed_of(copy) == speed and copy.recording.id == f"u00{index // 3}_sp{speed}"
        assert copy.supervisions[0].text == cuts[index // 3].supervisions[0].text
        assert unperturbed_id(copy.id, copy) == unperturbed_id(copy.recording.id, copy) == f"u00{index // 3}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1600, 20_000),
    start=st.floats(0, 0.99),
    length=st.floats(0.05, 1.0),
    speed=st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 2.0]),
    rate=st.sampled_from([16_000, 22_050]),
)
def test_the_audio_of_a_copy_is_exact(
    tmp_path: Path, samples: int, start: float, length: float, speed: float, rate: int
) -> None:
    """Whatever part of a recording: after a plan's line of JSON the loader gives as many samples as the cut says, the
    same ones each time, and those of a whole file are bit for bit what Lhotse's transform makes of it."""
    path = tmp_path / f"{samples}-{rate}.wav"
    data_T = sound(str(samples), 2.0)[:samples]
    soundfile.write(path, data_T, rate, subtype="FLOAT")
    duration = samples / rate
    first = round(start * duration, 4)
    whole = cut_of(path)
    part = fastcopy(whole, start=first, duration=round(min(length, duration - first), 4))
    for cut in (whole, part):
        if cut.duration < 0.05:
            continue
        line = cut_to_json(perturbed(cut, speed))
        copy = cut_from_json(line)
        assert cut_to_json(copy) == line and copy.end <= copy.recording.duration + 1e-8
        for wanted in (16_000, rate):
            heard_T = AudioLoader(wanted)(copy)
            assert heard_T.numel() == compute_num_samples(copy.duration, wanted)
            assert torch.equal(heard_T, AudioLoader(wanted)(cut_from_json(line)))
    at_own_rate = AudioLoader(rate)(cut_from_json(cut_to_json(perturbed(whole, speed))))
    expected_T = Speed(factor=speed)(data_T[None], rate)[0]
    assert abs(len(expected_T) - at_own_rate.numel()) <= 1
    same = min(len(expected_T), at_own_rate.numel())
    np.testing.assert_array_equal(at_own_rate.numpy()[:same], expected_T[:same])


def test_rows_are_those_of_the_audio_that_was_coded(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.6, 0.43, 0.5], texts=["one", "two", None])
    corpus = corpus_of(tmp_path, cuts)
    plan = plan_of(tmp_path / "plan", corpus)
    (shard,) = plan.shards
    assert plan.num_cuts == shard.num_cuts == 9
    hours = sum(cut.duration / speed for cut in cuts for speed in SPEEDS) / 3600
    assert plan.hours == pytest.approx(hours, rel=1e-4)
    table = IndexTable.create(open_location(str(tmp_path / "table")), make_contract())
    kept = IndexTable.create(open_location(str(tmp_path / "kept")), make_contract_of_embeddings())
    embedder = make_embedder()
    embedder.feeder._loader._root = corpus.root
    tables = [(table, make_quantizer()), (kept, None)]
    extractor = Extractor(embedder=embedder, tables=tables, plan=plan.location)
    report = extractor.run(shard)
    assert report.num_left_out == 0
    loader, quantizer = AudioLoader(16_000, root=corpus.root), make_quantizer().eval()
    planned = {cut.id: cut for cut in read_shard_cuts(plan.location, shard)}
    for row, also in zip(table.iter_rows(), kept.iter_rows(), strict=True):
        cut = cut_from_json(row["cut"])
        assert row["cut"] == also["cut"] == cut_to_json(planned[row["cut_id"]])
        assert row["speed"] == also["speed"] == speed_of(cut)
        assert row["cut_id"] == cut.id and row["recording_id"] == cut.recording.id
        # As training does it, from the row alone.
        waveform_T = loader(cut)
        check_row_matches(row, **identity(cut, waveform_T.numel()))
        (x_TD,) = FakeTeacher().encode([waveform_T])
        np.testing.assert_array_equal(row["codes"], quantizer.encode(x_TD, as_bytes=False).numpy())
        np.testing.assert_array_equal(also["embeddings"], x_TD.numpy().astype(np.float16))
    before = objects(table.location)
    again = Extractor(embedder=embedder, tables=tables, plan=plan.location).run(shard)
    assert again.tables == report.tables and objects(table.location) == before


def test_a_plan_says_at_which_speeds(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5] * 4)
    plain = corpus_of(tmp_path, cuts, speeds=(1.0,))
    plan = plan_of(tmp_path / "plan", plain, hours=1.2 / 3600)
    assert "speeds" not in plan.settings
    unchanged = plain.config.plan_settings("train", sample_rate_hz=16_000)
    assert unchanged == plain.config.plan_settings("train", sample_rate_hz=16_000, speeds=(1.0,))
    corpus = corpus_of(tmp_path, cuts)
    wanted = corpus.config.plan_settings("train", sample_rate_hz=16_000, speeds=SPEEDS)
    assert wanted == {**unchanged, "speeds": [0.9, 1.0, 1.1]}
    found = existing_plan(plan.location, shard_hours=1.2 / 3600, settings=wanted, root=corpus.root)
    assert found is None
    more = plan_of(tmp_path / "plan", corpus, hours=1.2 / 3600)
    assert more.settings["speeds"] == [0.9, 1.0, 1.1] and more.num_cuts == 12
    names = {shard.name("contract") for shard in plan.shards}
    assert not names & {shard.name("contract") for shard in more.shards}
    again = plan_of(tmp_path / "again", corpus, hours=1.2 / 3600)
    assert [shard.name("c") for shard in again.shards] == [shard.name("c") for shard in more.shards]


@pytest.mark.parametrize("kind", ["cuts", "folder", "shar"])
def test_every_kind_of_corpus(tmp_path: Path, kind: str) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4])
    if kind == "folder":
        lines = ["id\tsplit\tspeaker\ttext"]
        for number, cut in enumerate(cuts):
            write_sound(tmp_path / f"audio/train/u{number}.wav", cut.duration)
            lines.append(f"u{number}\ttrain\ts\tA")
        (tmp_path / "transcripts.tsv").write_text("\n".join(lines) + "\n")
        config = CorpusConfig(format="folder", root=str(tmp_path))
    elif kind == "shar":
        (tmp_path / "shar").mkdir()
        CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", fields={"recording": "wav"})
        config = CorpusConfig(format="shar", root=str(tmp_path), train="shar")
    else:
        config = corpus_of(tmp_path, cuts).config
    corpus = Corpus(config, sample_rate_hz=16_000, speeds=SPEEDS)
    found = [cut for cut in corpus.cuts("train") if isinstance(cut, MonoCut)]
    assert [speed_of(cut) for cut in found] == [0.9, 1.0, 1.1] * 2
    entries = list(corpus.planned("train"))
    assert [entry.line for entry in entries if isinstance(entry, Planned)] == [
        cut_to_json(cut, root=corpus.root) for cut in found
    ]
    for cut in found:
        assert AudioLoader(16_000, root=corpus.root)(cut).numel() == compute_num_samples(cut.duration, 16_000)


def test_processes_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = make_cuts(tmp_path, [0.3] * 6)
    corpus = corpus_of(tmp_path, cuts)
    here = list(corpus.planned("train"))
    monkeypatch.setattr("mvqkd.workers.corpus.lines.BLOCKS_HERE", 0)
    monkeypatch.setattr("mvqkd.workers.corpus.blocks.BLOCK_BYTES", 1500)
    assert list(corpus.planned("train", processes=2)) == here and len(here) == 18


def test_copies_that_are_too_long_or_too_short_are_refused_alone(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [1.0, 0.5])
    found = list(corpus_of(tmp_path, cuts, max_duration_s=1.05, min_duration_s=0.49).cuts("train"))
    refused = {one.cut_id: one.reason for one in found if isinstance(one, Refused)}
    assert set(refused) == {"u000_sp0.9", "u001_sp1.1"}
    assert "lasts 1.11 s, more than corpus.max_duration_s 1.05" in refused["u000_sp0.9"]
    assert [cut.id for cut in found if isinstance(cut, MonoCut)] == [
        "u000",
        "u000_sp1.1",
        "u001_sp0.9",
        "u001",
    ]


def test_a_manifest_with_copies_gives_the_same_plan_as_one_without(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4])
    without = [x for x in corpus_of(tmp_path, cuts).planned("train") if isinstance(x, Planned)]
    given_copies = [copy for cut in cuts for copy in (cut, cut.perturb_speed(0.9))]
    found = list(corpus_of(tmp_path, given_copies).planned("train"))
    assert [x for x in found if isinstance(x, Planned)] == without
    refused = [x for x in found if isinstance(x, Refused)]
    assert [x.cut_id for x in refused] == ["u000_sp0.9", "u001_sp0.9"]
    assert "is at speed 0.9 already, and extract.speeds makes such copies" in refused[0].reason
    # Without extract.speeds they are taken as they are.
    assert len(list(corpus_of(tmp_path, given_copies, speeds=(1.0,)).planned("train"))) == 4


def test_windows_of_copies_tile_them(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "long.wav", 9.0)
    recording = Recording.from_file(path)
    corpus = corpus_of(tmp_path, [recording.to_cut()], max_duration_s=5.0, window_s=4.0, window_overlap_s=0.4)
    found = [cut for cut in corpus.cuts("train") if isinstance(cut, MonoCut)]
    for speed in SPEEDS:
        windows = [cut for cut in found if speed_of(cut) == speed]
        assert len(windows) > 1 and windows[0].start == 0.0
        for one, following in pairwise(windows):
            assert one.end == pytest.approx(following.start, abs=1e-6)
        assert windows[-1].end == pytest.approx(9.0 / speed, abs=1e-3)


def test_no_utterance_is_on_both_sides_of_the_sample(tmp_path: Path) -> None:
    """Without speakers, copies of one recording stay together."""
    cuts = [fastcopy(cut, supervisions=[]) for cut in make_cuts(tmp_path, [0.3] * 20)]
    plan = plan_of(tmp_path / "plan", corpus_of(tmp_path, cuts))
    sample = draw_sample(plan.location, plan.shards, hours=plan.hours, valid_fraction=0.3, seed=1)
    assert sample.held_out == "recordings" and len(sample.train) + len(sample.valid) > 50

    def sides(part: tuple[MonoCut, ...]) -> set[str]:
        return {unperturbed_id(cut.recording.id, cut) for cut in part}

    assert sides(sample.valid) and not sides(sample.train) & sides(sample.valid)


def test_ids_before_perturbation(tmp_path: Path) -> None:
    (cut,) = make_cuts(tmp_path, [0.5])
    cut = fastcopy(cut, id="a_sp0.9b")
    assert unperturbed_id(cut.id, cut) == "a_sp0.9b"
    copy = cut.perturb_speed(0.9)
    assert unperturbed_id(copy.id, copy) == "a_sp0.9b"
    assert unperturbed_id(f"{copy.id}-w00001", copy) == "a_sp0.9b-w00001"
    again = cut_from_json(json.dumps(copy.to_dict())).perturb_speed(1.1)
    assert unperturbed_id(again.id, again) == "a_sp0.9b"
