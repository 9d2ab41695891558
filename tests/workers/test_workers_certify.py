"""The padding certificate finds what depends on the batch, and only that."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from workers_fakes import RATE, FakeTeacher, make_cuts, make_quantizer

from mvqkd.models.teachers import EmbeddedBatch
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.certify import Certifier


class Leaky(FakeTeacher):
    """What else is in the batch shows in the embeddings."""

    def embed_batch(self, waveforms: Sequence[Tensor], layers: Sequence[int] | None = None) -> EmbeddedBatch:
        batch = super().embed_batch(waveforms, layers)
        return replace(batch, frames=tuple(x_FD + 0.05 * (len(waveforms) - 1) for x_FD in batch.frames))


def make(teacher: FakeTeacher, *, exact: FakeTeacher | None = None) -> Certifier:
    return Certifier(
        teacher=teacher,
        exact=exact,
        quantizer=make_quantizer(),
        loader=AudioLoader(RATE),
        batch_seconds=2.0,
        search="full",
        device="cpu",
    )


def test_a_teacher_whose_batches_change_nothing_is_certified(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.3 + 0.05 * n for n in range(8)])
    (tmp_path / "u003.wav").unlink()
    notes: list[dict[str, float]] = []
    found = make(FakeTeacher()).run(cuts, note=notes.append)
    assert found.certified and (found.utterances, found.left_out) == (7, 1)
    assert set(found.changes) == {
        "batched",
        "half as large batches",
        "twice as large batches",
        "lengths mixed",
    }
    for change in found.changes.values():
        assert (change.codes, change.frames, change.rrl, change.error_of_changed) == (0, 0, 0, 0)
    assert notes[-1] == {"done": 5, "total": 5}


def test_a_leak_between_utterances_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = make(Leaky()).run(make_cuts(tmp_path, [0.3 + 0.05 * n for n in range(8)]))
    assert not found.certified
    batched = found.changes["batched"]
    assert 0.001 < batched.codes <= batched.frames <= 1 and batched.embeddings > 0.001
    # Batches of twice the size leak more.
    assert found.changes["twice as large batches"].embeddings > batched.embeddings


def test_another_precision_is_compared_with_float32(tmp_path: Path) -> None:
    found = make(Leaky(), exact=FakeTeacher()).run(make_cuts(tmp_path, [0.3, 0.4, 0.5, 0.6]))
    assert found.changes["alone in float32"].codes == 0
    assert found.changes["batched in float32"].codes == 0 < found.changes["batched"].codes


def test_nothing_to_encode(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.3])
    (tmp_path / "u000.wav").unlink()
    with pytest.raises(ValueError, match="no utterance of the sample can be used"):
        make(FakeTeacher()).run(cuts)
