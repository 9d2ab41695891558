"""Training steps: deterministic, resumable by any number of workers, without overlap, never with the wrong codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distill_fakes import LENGTHS, SETTINGS, batches_of, make_data
from workers_fakes import write_sound

from mvqkd.models.alignment import IGNORE, FrameAlignment
from mvqkd.models.features import LogMel
from mvqkd.models.students.conformer import subsampled_length
from mvqkd.models.students.units import CharUnits
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import cut_from_json
from mvqkd.workers.distill.data import DataState, PlannedStep
from mvqkd.workers.distill.examples import Batch, Example
from mvqkd.workers.distill.rows import RowKey, scan_table
from mvqkd.workers.distill.settings import DistillConfig

MakeTable = Callable[..., IndexTable]


def once(**changes: object) -> DistillConfig:
    """One epoch, and what else is changed."""
    return SETTINGS.model_copy(update={"epochs": 1, "cache_mb": 0, **changes})


def keys_of(plan: list[PlannedStep]) -> list[RowKey]:
    return [key for step in plan for batch in step.batches for key in batch.keys]


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
    batches = batches_of(make_data(table, once()))
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
    ordered = batches_of(make_data(table, once(codebooks=1)))
    for batch, whole in zip(ordered, batches_of(make_data(table, once())), strict=True):
        for example, other in zip(batch.examples, whole.examples, strict=True):
            cut_id, targets_TK = example.cut_id, example.targets["codebook"]
            all_TK = other.targets["codebook"]
            # Two teacher frames for one of the student, each with its first code of two.
            assert torch.equal(targets_TK, all_TK[:, ::2])
            assert torch.equal(targets_TK[0], torch.from_numpy(rows[cut_id]["codes"][:2, 0].copy()).long())


def test_the_same_every_time_and_other_in_other_epochs(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    first, again = (batches_of(make_data(table)) for _ in range(2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    half = len(first) // 2
    ids = [batch.cut_ids for batch in first]
    assert sorted(sum(ids[:half], ())) == sorted(sum(ids[half:], ())) and ids[:half] != ids[half:]
    other = batches_of(make_data(table, SETTINGS.model_copy(update={"seed": 2})))
    assert ids != [batch.cut_ids for batch in other]


def test_batches_are_bounded(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    durations = {row["cut_id"]: row["duration"] for row in table.iter_rows()}
    for batch in batches_of(make_data(table, once(epochs=3))):
        assert len(batch.cut_ids) * max(durations[c] for c in batch.cut_ids) <= 2.0


@pytest.mark.parametrize("per_shard", [1, 4])
def test_resumed_anywhere_gives_exactly_the_rest(
    make_table: MakeTable, monkeypatch: pytest.MonkeyPatch, per_shard: int
) -> None:
    monkeypatch.setattr("mvqkd.workers.distill.stream.WINDOW_SHARDS", 2)
    data = make_data(make_table(LENGTHS, per_shard=per_shard), once(epochs=3))
    whole = list(data.plan(DataState()))
    assert whole[-1].after.own.epoch == 3 and len(whole) > 12
    for number, step in enumerate(whole, start=1):
        state = DataState.from_dict(step.after.to_dict())
        assert list(data.plan(state)) == whole[number:]
    loaded = [step.batches for step in data.steps(whole[5].after)]
    expected = [step.batches for step in data.steps(DataState())][6:]
    assert all(
        same(a, b)
        for ours, theirs in zip(loaded, expected, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (3, 1), (2, 2), (1, 3)])
def test_ranks_share_the_rows(make_table: MakeTable, world_size: int, accumulate: int) -> None:
    table = make_table(LENGTHS, per_shard=8)
    settings = once(accumulate=accumulate, batch_seconds=1.0)
    one = make_data(table, once(batch_seconds=1.0)).plan(DataState())
    alone = [batch for step in one for batch in step.batches]
    plans = [
        list(make_data(table, settings, rank=rank, world_size=world_size).plan(DataState()))
        for rank in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    assert all(len(step.batches) == accumulate for plan in plans for step in plan)
    keys = [key for plan in plans for key in keys_of(plan)]
    assert len(set(keys)) == len(keys) and set(keys) <= {key for batch in alone for key in batch.keys}
    at_once = world_size * accumulate
    batches = sum(len(step.batches) for plan in plans for step in plan)
    assert batches == len(alone) // at_once * at_once, "only what makes no whole step is left over"
    for steps in zip(*plans, strict=True):
        assert len({step.after for step in steps}) == 1, "all ranks are at the same place"
        numbers = sorted(batch.number for step in steps for batch in step.batches)
        assert numbers == list(range(world_size * accumulate))


def test_goes_on_with_another_number_of_workers(make_table: MakeTable) -> None:
    """Two workers begin, three go on, one ends it: each batch is trained on once, in the same order."""
    table = make_table(LENGTHS * 3, per_shard=4)
    settings = once(batch_seconds=1.0)
    alone = [batch for step in make_data(table, settings).plan(DataState()) for batch in step.batches]
    state, done = DataState(), []
    for world_size, steps in ((2, 4), (3, 3), (1, 1000)):
        ranks = [
            list(make_data(table, settings, rank=rank, world_size=world_size).plan(state))[:steps]
            for rank in range(world_size)
        ]
        done += [batch.keys for step in zip(*ranks, strict=True) for rank in step for batch in rank.batches]
        state = ranks[0][-1].after
    assert done == [batch.keys for batch in alone]


def test_memory_does_not_grow_with_the_table(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvqkd.workers.distill.stream.WINDOW_SHARDS", 2)
    monkeypatch.setattr("mvqkd.workers.distill.data.WINDOW_SHARDS", 2)
    monkeypatch.setattr("mvqkd.workers.distill.stream.KEPT_ROWS", 3)
    data = make_data(make_table(LENGTHS, per_shard=1), once())
    plan = list(data.plan(DataState()))
    assert all(len({key.shard for key in batch.keys}) <= 2 for step in plan for batch in step.batches)
    assert len([c for batch in batches_of(data) for c in batch.cut_ids]) == len(LENGTHS)
    assert all(len(rows._shards) <= 3 for rows in data._rows)
    assert len(data._own._lengths) <= 3


def test_examples_made_in_other_processes_are_the_same(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table([0.5] * 24)
    (tmp_path / "audio/u003.wav").unlink()
    here, there = make_data(table, once()), make_data(table, once(decode_processes=1))
    assert all(same(a, b) for a, b in zip(batches_of(here), batches_of(there), strict=True))
    assert here.left_out == there.left_out and list(here.left_out) == ["u003"]


def test_cached_features_are_the_fresh_ones(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(LENGTHS)
    cached, fresh = make_data(table, once(cache_mb=64)), make_data(table, once(cache_mb=0))
    for _ in range(2):
        assert all(same(a, b) for a, b in zip(batches_of(cached), batches_of(fresh), strict=True))
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    assert sum(len(batch.cut_ids) for batch in batches_of(cached)) == len(LENGTHS) and not cached.left_out


@pytest.mark.parametrize("seconds", [0.4, 0.6])
def test_replaced_audio_is_left_out(make_table: MakeTable, tmp_path: Path, seconds: float) -> None:
    table = make_table([0.5] * 24)
    write_sound(tmp_path / "audio/u003.wav", seconds)
    batches = make_data(table, once())
    found = [cut_id for batch in batches_of(batches) for cut_id in batch.cut_ids]
    assert len(found) == 23 and "u003" not in found
    assert list(batches.left_out) == ["u003"]
    assert f"lasts {seconds:.3f} s, but 0.500 s by its manifest" in batches.left_out["u003"]
    assert "extract again" in batches.left_out["u003"]


def test_stale_row_is_left_out(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio whose samples are not those of the row, though its manifest agrees with the file."""
    table = make_table([0.5] * 24)
    batches = make_data(table, once())
    real = AudioLoader.__call__

    def longer(self: AudioLoader, cut: object) -> torch.Tensor:
        waveform_T = real(self, cut)  # type: ignore[arg-type]
        return torch.cat([waveform_T, waveform_T[:160]]) if cut.id == "u007" else waveform_T  # type: ignore[attr-defined]

    monkeypatch.setattr(AudioLoader, "__call__", longer)
    assert sum(len(batch.cut_ids) for batch in batches_of(batches)) == 23
    assert "num_samples is 8160 now, but was 8000 when its codes were made" in batches.left_out["u007"]


def test_too_many_unusable_rows_end_the_training(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table([0.5] * 24)
    batches = make_data(table, once())
    for name in ("u003", "u011", "u017"):
        (tmp_path / f"audio/{name}.wav").unlink()
    with pytest.raises(
        ValueError, match=r"2 of 24 utterances of .*table cannot be used, more than 5%; the last"
    ):
        batches_of(batches)


def test_rows_without_text_are_passed_over(make_table: MakeTable) -> None:
    table = make_table([0.5] * 8, texts=["a cat", None, "", " "])
    batches = make_data(table, once())
    assert len(list(table.iter_rows())) == 8 and scan_table(table).rows["own"] == 2
    assert sorted(c for batch in batches_of(batches) for c in batch.cut_ids) == ["u000", "u004"]


def test_what_a_table_has(make_table: MakeTable) -> None:
    table = make_table([0.5, 0.8, 0.3, 0.6, 0.7], texts=["a cat", None, "a dog", " "], per_shard=2)
    scan = scan_table(table)
    assert scan.texts == ["a cat", "a dog", "a cat"]
    assert scan.seconds == pytest.approx({"own": 1.5, "codes": 1.4}) and scan.rows == {"own": 3, "codes": 2}


def test_table_without_text(make_table: MakeTable) -> None:
    with pytest.raises(
        ValueError, match=r"table: no row has a transcript.*extract a corpus that has.*pretrain"
    ):
        scan_table(make_table([0.5] * 2, texts=[None]))


def test_fewer_batches_than_workers(make_table: MakeTable) -> None:
    with pytest.raises(
        ValueError, match=r"2 utterances make too few batches for 3 training workers.*; lower"
    ):
        make_data(make_table([0.5] * 2), world_size=3)


def test_unknown_characters_and_codes_of_other_lengths(make_table: MakeTable) -> None:
    table = make_table([0.5] * 24, texts=["a cat"] * 23 + ["a fox"])
    batches = make_data(table, once())
    batches_of(batches)
    assert "characters outside the alphabet: ['f', 'x']" in batches.left_out["u023"]
    wrong_rate = FrameAlignment(teacher_rate_hz=100.0, student_rate_hz=25.0)
    with pytest.raises(ValueError, match=r"without a target, more than distill.max_missing_frames \(4\)"):
        batches_of(make_data(table, once(), alignment=wrong_rate))


def test_audio_too_short_for_the_student(make_table: MakeTable) -> None:
    table = make_table([0.5] * 23 + [0.05])
    batches = make_data(table, once())
    assert sum(len(batch.cut_ids) for batch in batches_of(batches)) == 23
    assert "800 samples are too few for one frame of the student" in batches.left_out["u023"]
