"""How large batches are: more, until speed or memory says stop."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from workers_fakes import RATE, FakeTeacher

from mvqkd.models.teachers import EmbeddedBatch
from mvqkd.workers import batch_bound
from mvqkd.workers.batch_bound import find_batch_seconds

CPU = torch.device("cpu")
WAVEFORMS = [torch.zeros(int(RATE * seconds)) for seconds in (1.0, 2.0, 3.0, 4.0, 9.0)]


class Timed(FakeTeacher):
    """Takes a time that follows from the padded seconds of its batch, on a clock of its own."""

    def __init__(self, overhead_s: float, *, room_s: float = 1e9) -> None:
        super().__init__()
        self.now, self.overhead_s, self.room_s = 0.0, overhead_s, room_s
        self.batches_s: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def embed_batch(self, waveforms: Sequence[Tensor], layers: Sequence[int] | None = None) -> EmbeddedBatch:
        padded_s = len(waveforms) * max(map(len, waveforms)) / RATE
        self.batches_s.append(padded_s)
        if padded_s > self.room_s:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.overhead_s + padded_s / 1000
        return super().embed_batch([torch.zeros(400)])


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def find(teacher: Timed) -> float:
        monkeypatch.setattr(batch_bound, "time", teacher)
        return find_batch_seconds(teacher, WAVEFORMS, device=CPU)

    return find


def test_without_overhead_small_batches_do(found) -> None:  # type: ignore[no-untyped-def]
    assert found(Timed(0.0)) == 30.0


def test_the_more_overhead_the_larger(found) -> None:  # type: ignore[no-untyped-def]
    bounds = [found(Timed(overhead)) for overhead in (0.0, 0.005, 0.05, 0.5)]
    assert bounds == sorted(bounds) and len(set(bounds)) >= 3


def test_memory_says_stop(found) -> None:  # type: ignore[no-untyped-def]
    teacher = Timed(0.5, room_s=200.0)
    assert found(teacher) == 120.0
    assert max(teacher.batches_s) <= 240.0, "no larger one is tried after that"


def test_batches_are_within_their_bound(found) -> None:  # type: ignore[no-untyped-def]
    teacher = Timed(2.0)
    assert found(teacher) == batch_bound.BOUNDS_S[-1]
    assert [
        round(s / bound, 1) for s, bound in zip(teacher.batches_s[::3], batch_bound.BOUNDS_S, strict=True)
    ] == [1.0] * len(batch_bound.BOUNDS_S)


def test_a_batch_that_takes_seconds_is_large_enough(found) -> None:  # type: ignore[no-untyped-def]
    """Where trying larger ones would take minutes, as on a slow or busy CPU."""
    teacher = Timed(5.1)
    assert found(teacher) == 30.0 and max(teacher.batches_s) <= 30.0
