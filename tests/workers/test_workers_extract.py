"""One shard from audio to a committed Parquet object."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from lhotse import MonoCut
from workers_fakes import (
    FakeTeacher,
    make_contract,
    make_cuts,
    make_embedder,
    make_plan,
    make_quantizer,
)

from mvqkd.storage.errors import StorageError
from mvqkd.storage.failures import read_failures
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.shard_summary import ShardSummary
from mvqkd.storage.table import IndexTable, check_row_matches
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import cut_from_json, cut_to_json, identity, speed_of, text_of
from mvqkd.workers.extract import DeviceMemoryError, Extractor, ShardReport, UnreadableShardError
from mvqkd.workers.shard import Shard, read_shard_cuts, write_shard_cuts


def make_extractor(
    folder: Path, plan: Location, teacher: FakeTeacher | None = None, **settings: float
) -> tuple[Extractor, IndexTable]:
    table = IndexTable.create(open_location(str(folder)), make_contract())
    extractor = Extractor(
        embedder=make_embedder(teacher), tables=[(table, make_quantizer())], plan=plan, **settings
    )
    return extractor, table


def name_of(report: ShardReport) -> str:
    ((name, _),) = report.tables
    return name


def summary_of(report: ShardReport) -> ShardSummary:
    ((_, summary),) = report.tables
    return summary


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one_shard(tmp_path: Path, cuts: list[MonoCut]) -> tuple[Location, Shard]:
    plan, (shard,) = make_plan(tmp_path / "plan", cuts, per_shard=len(cuts))
    return plan, shard


def test_one_shard_end_to_end(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.3, 0.9, 0.5], texts=["one", "two", None])
    cuts[1] = cuts[1].perturb_speed(1.1)
    plan, shard = one_shard(tmp_path, cuts)
    extractor, table = make_extractor(tmp_path / "table", plan)
    report = extractor.run(shard)
    rows = list(table.iter_rows())
    assert [row["cut_id"] for row in rows] == ["u000", "u001_sp1.1", "u002"]
    assert (summary_of(report).rows, report.num_left_out) == (3, 0)
    assert name_of(report) == shard.name(table.contract.digest())
    assert summary_of(report).frames == sum(row["num_frames"] for row in rows)
    assert summary_of(report).duration_s / 3600 == pytest.approx(sum(cut.duration for cut in cuts) / 3600)
    assert [row["speed"] for row in rows] == [1.0, 1.1, 1.0]
    assert [row["text"] for row in rows] == ["one", "two", None]
    assert [row["speaker"] for row in rows] == ["bob", "ann", "bob"]
    loader, teacher, quantizer = AudioLoader(16_000), FakeTeacher(), make_quantizer().eval()
    for row, cut in zip(rows, cuts, strict=True):
        waveform_T = loader(cut)
        check_row_matches(row, **identity(cut, waveform_T.numel()))
        assert cut_from_json(row["cut"]).to_dict() == cut.to_dict()
        (embeddings_TD,) = teacher.encode([waveform_T])
        np.testing.assert_array_equal(row["codes"], quantizer.encode(embeddings_TD, as_bytes=False).numpy())
        assert row["codes"].shape == (row["num_frames"], 2)
        assert 0 < row["rrl"] < 10
    assert rows[1]["num_samples"] == pytest.approx(0.9 / 1.1 * 16_000, abs=1)


def test_failures_are_recorded(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.5, 0.4, 0.3, 0.2]))
    (tmp_path / "u001.wav").unlink()
    teacher = FakeTeacher()
    teacher.nan_samples = {4800}
    extractor, table = make_extractor(tmp_path / "table", plan, teacher)
    report = extractor.run(shard)
    assert (summary_of(report).rows, report.num_left_out) == (2, 2)
    assert [row["cut_id"] for row in table.iter_rows()] == ["u000", "u003"]
    missing, not_finite = read_failures(table.location)
    assert (missing.cut_id, missing.stage, missing.shard) == ("u001", "load", name_of(report))
    assert "no such audio file" in missing.message
    assert (not_finite.cut_id, not_finite.stage) == ("u002", "teacher")


def test_shard_without_its_audio_is_not_committed(tmp_path: Path) -> None:
    """A disk that is not mounted on this machine: the shard is to be had elsewhere."""
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.5, 0.4]))
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    extractor, table = make_extractor(tmp_path / "table", plan)
    with pytest.raises(
        UnreadableShardError, match=r"2 of 2 utterances cannot be read.*no such audio.*raise extract.max_unr"
    ):
        extractor.run(shard)
    assert table.committed() == set() and read_failures(table.location) == []


@pytest.mark.parametrize(
    ("missing", "settings"), [(2, {}), (3, {"max_unreadable": 0.3}), (1, {"max_unreadable": 0})]
)
def test_some_audio_may_be_missing(tmp_path: Path, missing: int, settings: dict[str, float]) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.3] * 10))
    for number in range(missing):
        (tmp_path / f"u{number:03d}.wav").unlink()
    extractor, table = make_extractor(tmp_path / "table", plan, **settings)
    report = extractor.run(shard)
    assert (summary_of(report).rows, report.num_left_out) == (10 - missing, missing)
    (tmp_path / "u009.wav").unlink()
    extractor, table = make_extractor(tmp_path / "again", plan, **settings)
    with pytest.raises(UnreadableShardError, match=f"{missing + 1} of 10 utterances"):
        extractor.run(shard)
    assert table.committed() == set()


def test_what_the_teacher_refuses_is_not_unreadable(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.5, 0.02, 0.01, 0.015]))
    report = make_extractor(tmp_path / "table", plan)[0].run(shard)
    assert (summary_of(report).rows, report.num_left_out) == (1, 3)


def test_progress_is_in_hours(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.3, 0.9, 0.5, 0.4, 0.7]))
    (tmp_path / "u002.wav").unlink()
    notes: list[dict[str, float]] = []
    make_extractor(tmp_path / "table", plan)[0].run(shard, note=notes.append)
    assert {note["position"] for note in notes} == {shard.position}
    seen = [note["hours"] for note in notes]
    assert len(set(seen)) > 2 and seen == sorted(seen)
    assert seen[-1] == pytest.approx((0.3 + 0.9 + 0.5 + 0.4 + 0.7) / 3600)


def test_shard_of_bad_utterances_is_committed_empty_where_that_is_allowed(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.5, 0.4]))
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    extractor, table = make_extractor(tmp_path / "table", plan, max_unreadable=1.0)
    report = extractor.run(shard)
    assert (summary_of(report).rows, summary_of(report).frames, summary_of(report).duration_s / 3600) == (
        0,
        0,
        0.0,
    )
    assert table.committed() == {name_of(report)} and list(table.iter_rows()) == []
    assert len(read_failures(table.location)) == 2


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.5, 0.4, 0.3]))
    (tmp_path / "u001.wav").unlink()
    make_extractor(tmp_path / "a", plan)[0].run(shard)
    extractor, _ = make_extractor(tmp_path / "b", plan)
    extractor.run(shard)
    before = digests(tmp_path / "b")
    assert before == digests(tmp_path / "a") and len(before) == 3
    extractor.run(shard)
    assert digests(tmp_path / "b") == before


def test_killed_before_the_commit_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.5, 0.4]))
    (tmp_path / "u001.wav").unlink()
    extractor, table = make_extractor(tmp_path / "table", plan)

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Location, "write_once", kill)
        extractor.run(shard)
    assert table.committed() == set() and len(read_failures(table.location)) == 1
    extractor.run(shard)
    make_extractor(tmp_path / "undisturbed", plan)[0].run(shard)
    assert digests(tmp_path / "table") == digests(tmp_path / "undisturbed")


def test_names_follow_from_position_cuts_and_contract(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.3, 0.3])
    plan = open_location(str(tmp_path / "plan"))
    first, again = write_shard_cuts(plan, 0, cuts), write_shard_cuts(plan, 0, cuts)
    other, moved = write_shard_cuts(plan, 0, cuts[:1]), write_shard_cuts(plan, 1, cuts)
    assert first == again and first.to_dict()["position"] == 0
    names = {shard.name(digest) for shard in (first, other, moved) for digest in ("a", "b")}
    assert len(names) == 6
    assert first.name("a").startswith("shard-000000-") and moved.name("a").startswith("shard-000001-")


def test_planned_cuts_come_back(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.3, 0.3, 0.3], texts=["É \u2028 \x85 line", "two", None])
    cuts[1] = cuts[1].perturb_speed(0.9)
    plan, shard = one_shard(tmp_path, cuts)
    back = list(read_shard_cuts(plan, shard))
    assert [cut.to_dict() for cut in back] == [cut.to_dict() for cut in cuts]
    assert [cut_to_json(cut) for cut in back] == [cut_to_json(cut) for cut in cuts]


def test_damaged_plan(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.3]))
    other = write_shard_cuts(plan, 7, make_cuts(tmp_path, [0.3, 0.4]))
    plan.replace(shard.path, plan.read_bytes(other.path))
    with pytest.raises(ValueError, match=r"cuts-000000-.*changed since it was planned; delete the plan"):
        list(read_shard_cuts(plan, shard))
    good = b"".join(gzip.compress(cut_to_json(cut).encode()) for cut in make_cuts(tmp_path, [0.3]))
    for bad in (good[:-10], good[:40], b"\0" + good[1:], good[:30] + bytes(255 - x for x in good[30:])):
        plan.replace(shard.path, bad)
        with pytest.raises(ValueError, match=r"cuts-000000-.*damaged since it was planned .*delete the plan"):
            list(read_shard_cuts(plan, shard))
    plan.remove(shard.path)
    with pytest.raises(StorageError, match="cuts-000000"):
        list(read_shard_cuts(plan, shard))


def test_speed_and_text_of_cuts(tmp_path: Path) -> None:
    (cut,) = make_cuts(tmp_path, [0.5])
    assert speed_of(cut) == 1.0
    assert speed_of(cut.perturb_speed(0.9)) == pytest.approx(0.9)
    assert speed_of(cut_from_json(cut_to_json(cut.perturb_speed(1.1)))) == pytest.approx(1.1)
    assert speed_of(cut.perturb_volume(2.0)) == 1.0
    later, earlier = cut.supervisions[0], cut.supervisions[0].with_offset(0)
    later.start, later.duration, later.text, earlier.text = 0.3, 0.2, "last", "first"
    cut.supervisions = [later, earlier]
    assert text_of(cut) == "first last"


def test_an_utterance_too_large_for_the_device_is_left_out_on_the_last_attempt_only(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.5, 0.9]))
    extractor, table = make_extractor(tmp_path / "table", plan, FakeTeacher(oom_samples=8000))
    with pytest.raises(DeviceMemoryError, match="u001: the device has no memory"):
        extractor.run(shard, last_attempt=False)
    assert not table.committed()
    report = extractor.run(shard, last_attempt=True)
    assert (summary_of(report).rows, report.num_left_out) == (1, 1)
    (failure,) = read_failures(table.location)
    assert (failure.cut_id, failure.stage) == ("u001", "device")
