"""Training batches: deterministic, resumable, dealt out without overlap, and never with the wrong codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distill_fakes import LENGTHS, make_batches
from workers_fakes import write_sound

from mvqkd.models.alignment import IGNORE, FrameAlignment
from mvqkd.models.features import LogMel
from mvqkd.models.students.conformer import subsampled_length
from mvqkd.models.students.units import CharUnits
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import cut_from_json
from mvqkd.workers.distill.batches import scan_table
from mvqkd.workers.distill.examples import Batch, Example

MakeTable = Callable[..., IndexTable]


def same(ours: Batch, theirs: Batch) -> bool:
    def parts(example: Example) -> list[torch.Tensor]:
        return [example.features_TF, example.units_U, example.targets["codebook"]]

    pairs = [
        pair
        for a, b in zip(ours.examples, theirs.examples, strict=True)
        for pair in zip(parts(a), parts(b), strict=True)
    ]
    return ours.cut_ids == theirs.cut_ids and all(torch.equal(a, b) for a, b in pairs)


def test_examples_are_the_tables_rows(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    rows = {row["cut_id"]: row for row in table.iter_rows()}
    batches = list(make_batches(table).epoch(0))
    assert sorted(cut_id for batch in batches for cut_id in batch.cut_ids) == sorted(rows)
    units, log_mel, load = CharUnits(" acdgot"), LogMel(), AudioLoader(16_000)
    batch = batches[0]
    assert len(batch.cut_ids) > 1
    for example in batch.examples:
        row, features_TF = rows[example.cut_id], example.features_TF
        units_U, targets_TK = example.units_U, example.targets["codebook"]
        expected_TF = log_mel(load(cut_from_json(row["cut"])))
        torch.testing.assert_close(features_TF, expected_TF, atol=2e-3, rtol=1e-3)
        assert units.decode(units_U.tolist()) == row["text"]
        assert targets_TK.shape == (subsampled_length(len(features_TF)), 4)
        assert torch.equal(targets_TK[0], torch.from_numpy(row["codes"][:2].flatten()).long())
    features_BTF, lengths_B, units_BU, unit_lengths_B, targets = batch.padded(
        [example.features_TF for example in batch.examples], torch.device("cpu")
    )
    targets_BTK = targets["codebook"]
    assert features_BTF.shape == (len(batch.cut_ids), int(lengths_B.max()), 80)
    assert targets_BTK.shape[1] == subsampled_length(int(lengths_B.max()))
    shortest = int(lengths_B.argmin())
    assert (targets_BTK[shortest, len(batch.examples[shortest].targets["codebook"]) :] == IGNORE).all()
    assert units_BU.shape == (len(batch.cut_ids), int(unit_lengths_B.max()))


def test_first_codebooks_alone(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    rows = {row["cut_id"]: row for row in table.iter_rows()}
    for batch, whole in zip(
        make_batches(table, codebooks=1).epoch(0), make_batches(table).epoch(0), strict=True
    ):
        for example, other in zip(batch.examples, whole.examples, strict=True):
            cut_id, targets_TK = example.cut_id, example.targets["codebook"]
            all_TK = other.targets["codebook"]
            # Two teacher frames for one of the student, each with its first code of two.
            assert torch.equal(targets_TK, all_TK[:, ::2])
            assert torch.equal(targets_TK[0], torch.from_numpy(rows[cut_id]["codes"][:2, 0].copy()).long())


def test_the_same_every_time_and_other_in_other_epochs(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    first, again = make_batches(table), make_batches(table)
    assert all(same(a, b) for a, b in zip(first.epoch(1), again.epoch(1), strict=True))
    assert first.plan_epoch(0) != first.plan_epoch(1)
    assert first.plan_epoch(0) != make_batches(table, seed=2).plan_epoch(0)


def test_batches_are_bounded(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    durations = {row["cut_id"]: row["duration"] for row in table.iter_rows()}
    for epoch in range(3):
        for batch in make_batches(table).epoch(epoch):
            assert len(batch.cut_ids) * max(durations[c] for c in batch.cut_ids) <= 2.0


def test_resumed_epoch_gives_exactly_the_rest(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    whole = list(make_batches(table).epoch(2))
    for first_step in (0, 1, len(whole) - 1, len(whole)):
        rest = list(make_batches(table).epoch(2, first_step=first_step))
        assert len(rest) == len(whole) - first_step
        assert all(same(a, b) for a, b in zip(whole[first_step:], rest, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_rows(make_table: MakeTable, world_size: int) -> None:
    table = make_table(LENGTHS, per_shard=8)
    everything = make_batches(table).plan_epoch(0)
    plans = [
        make_batches(table, rank=rank, world_size=world_size).plan_epoch(0) for rank in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    keys = [key for plan in plans for batch in plan for key in batch]
    assert len(set(keys)) == len(keys)
    assert sum(map(len, plans)) == len(everything) // world_size * world_size


def test_many_shards_are_read_in_windows(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvqkd.workers.distill.batches.WINDOW_SHARDS", 2)
    table = make_table(LENGTHS, per_shard=1)
    batches = make_batches(table)
    plan = batches.plan_epoch(0)
    assert all(len({name for name, _ in batch}) <= 2 for batch in plan)
    assert len([c for batch in batches.epoch(0) for c in batch.cut_ids]) == len(LENGTHS)
    assert len(batches._shards) <= 3


def test_cached_features_are_the_fresh_ones(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(LENGTHS)
    cached, fresh = make_batches(table, cache_mb=64), make_batches(table, cache_mb=0)
    for epoch in range(2):
        assert all(same(a, b) for a, b in zip(cached.epoch(epoch), fresh.epoch(epoch), strict=True))
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    assert sum(len(batch.cut_ids) for batch in cached.epoch(2)) == len(LENGTHS) and not cached.left_out


@pytest.mark.parametrize("seconds", [0.4, 0.6])
def test_replaced_audio_is_left_out(make_table: MakeTable, tmp_path: Path, seconds: float) -> None:
    table = make_table([0.5] * 24)
    write_sound(tmp_path / "audio/u003.wav", seconds)
    batches = make_batches(table)
    found = [cut_id for batch in batches.epoch(0) for cut_id in batch.cut_ids]
    assert len(found) == 23 and "u003" not in found
    assert list(batches.left_out) == ["u003"]
    assert f"lasts {seconds:.3f} s, but 0.500 s by its manifest" in batches.left_out["u003"]
    assert "extract again" in batches.left_out["u003"]


def test_stale_row_is_left_out(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio whose samples are not those of the row, though its manifest agrees with the file."""
    table = make_table([0.5] * 24)
    batches = make_batches(table)
    real = AudioLoader.__call__

    def longer(self: AudioLoader, cut: object) -> torch.Tensor:
        waveform_T = real(self, cut)  # type: ignore[arg-type]
        return torch.cat([waveform_T, waveform_T[:160]]) if cut.id == "u007" else waveform_T  # type: ignore[attr-defined]

    monkeypatch.setattr(AudioLoader, "__call__", longer)
    assert sum(len(batch.cut_ids) for batch in batches.epoch(0)) == 23
    assert "num_samples is 8160 now, but was 8000 when its codes were made" in batches.left_out["u007"]


def test_too_many_unusable_rows_end_the_training(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table([0.5] * 24)
    batches = make_batches(table)
    for name in ("u003", "u011", "u017"):
        (tmp_path / f"audio/{name}.wav").unlink()
    with pytest.raises(
        ValueError, match=r"2 of 24 utterances of .*table cannot be used, more than 5%; the last"
    ):
        list(batches.epoch(0))


def test_rows_without_text_are_passed_over(make_table: MakeTable) -> None:
    table = make_table([0.5] * 8, texts=["a cat", None, "", " "])
    batches = make_batches(table)
    assert len(list(table.iter_rows())) == 8 and batches.num_rows == 2
    assert sorted(c for batch in batches.epoch(0) for c in batch.cut_ids) == ["u000", "u004"]


def test_durations_and_transcripts_of_a_table(make_table: MakeTable) -> None:
    table = make_table([0.5, 0.8, 0.3, 0.6, 0.7], texts=["a cat", None, "a dog", " "], per_shard=2)
    durations, texts = scan_table(table)
    assert [durations[name] for name in sorted(table.committed())] == [[0.5, None], [0.3, None], [0.7]]
    assert texts == ["a cat", "a dog", "a cat"]


def test_table_without_text(make_table: MakeTable) -> None:
    with pytest.raises(ValueError, match=r"table: no row has a transcript.*extract a corpus that has"):
        scan_table(make_table([0.5] * 2, texts=[None]))


def test_fewer_batches_than_workers(make_table: MakeTable) -> None:
    with pytest.raises(ValueError, match=r"2 utterances make too few batches for 3 training workers; lower"):
        make_batches(make_table([0.5] * 2), world_size=3)


def test_unknown_characters_and_codes_of_other_lengths(make_table: MakeTable) -> None:
    table = make_table([0.5] * 24, texts=["a cat"] * 23 + ["a fox"])
    batches = make_batches(table)
    list(batches.epoch(0))
    assert "characters outside the alphabet: ['f', 'x']" in batches.left_out["u023"]
    wrong_rate = FrameAlignment(teacher_rate_hz=100.0, student_rate_hz=25.0)
    with pytest.raises(ValueError, match=r"without a target, more than distill.max_missing_frames \(4\)"):
        list(make_batches(table, alignment=wrong_rate).epoch(0))


def test_audio_too_short_for_the_student(make_table: MakeTable) -> None:
    table = make_table([0.5] * 23 + [0.05])
    batches = make_batches(table)
    assert sum(len(batch.cut_ids) for batch in batches.epoch(0)) == 23
    assert "800 samples are too few for one frame of the student" in batches.left_out["u023"]
