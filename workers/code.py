"""A batch of waveforms to codes: the teacher, then each table's quantizer, and the results when they are there.

On CUDA all of it is queued at once: the host waits for a batch when the next one has been queued behind it.

Shape suffixes: F frames of all utterances, B utterances, T frames of one, N codebooks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mvqkd.models.quantizer import Coder, Quantizer
from mvqkd.models.teachers import EmbeddedBatch, Teacher
from mvqkd.models.teachers.batch import numbers_on
from mvqkd.workers.feed import Loaded
from mvqkd.workers.windows import kept_frames


@dataclass(frozen=True, kw_only=True)
class Coded:
    """What a table keeps of an utterance: uint8 (T, N) codes and the relative reconstruction loss."""

    codes_TN: np.ndarray
    rrl: float


@dataclass(frozen=True, kw_only=True)
class Target:
    """One table's part: the quantizer of the embeddings of a layer.

    Attributes:
        layer: of those that the teacher was loaded for.
        quantizer: fitted on its embeddings, on the teacher's device.
        search: how codes are searched, as of `Coder`.
    """

    layer: int
    quantizer: Quantizer
    search: str = "full"


class BatchCoder:
    """Teacher and quantizers, one after the other.

    Args:
        teacher: the loaded teacher.
        targets: one or more.
    """

    def __init__(self, teacher: Teacher, targets: Sequence[Target]) -> None:
        self.teacher = teacher
        self._layers = sorted({target.layer for target in targets})
        self._coders: list[tuple[int, Coder]] = []
        for target in targets:
            coder = Coder(target.quantizer.eval(), search=target.search)
            self._coders.append((self._layers.index(target.layer), coder))

    def launch(self, items: Sequence[Loaded]) -> "Launched":
        """Begin a batch; the frames of a window's context are not coded.

        Raises:
            WaveformError, torch.OutOfMemoryError: as of `Teacher.embed_batch`.
        """
        clock = Clock(cuda=self._coders[0][1].quantizer.centers.is_cuda)
        batch = self._without_context(
            self.teacher.embed_batch([item.waveform_T for item in items], self._layers), items
        )
        clock.mark()
        coded = [coder(batch.frames[index], batch.lengths_B) for index, coder in self._coders]
        # The copies stand in the queue too; the host looks at them once the last mark is through.
        launched = Launched(
            lengths=batch.lengths,
            finite_B=_to_host(batch.finite_B),
            codes=[_to_host(codes_FN) for codes_FN, _ in coded],
            rrl=[_to_host(rrl_B) for _, rrl_B in coded],
            clock=clock,
        )
        clock.mark()
        return launched

    def _without_context(self, batch: EmbeddedBatch, items: Sequence[Loaded]) -> EmbeddedBatch:
        """The batch with the frames that are the cuts' own."""
        kept = [kept_frames(item.cut, self.teacher.info) for item in items]
        if all(one == slice(None) for one in kept):
            return batch
        ends = np.cumsum(batch.lengths)
        frames = [
            np.arange(end - length, end)[one]
            for end, length, one in zip(ends, batch.lengths, kept, strict=True)
        ]
        lengths = tuple(map(len, frames))
        device = batch.lengths_B.device
        kept_F = numbers_on(np.concatenate(frames).tolist(), device)
        return replace(
            batch,
            frames=tuple(x_FD[kept_F] for x_FD in batch.frames),
            lengths=lengths,
            lengths_B=numbers_on(lengths, device),
        )


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A batch that the device works on.

    Attributes:
        lengths: frames of each utterance.
        finite_B: whether its embeddings are numbers.
        codes: for each target (F, N).
        rrl: for each target (B,); NaN where an utterance could not be coded.
        clock: of the teacher's and the quantizers' time.
    """

    lengths: tuple[int, ...]
    finite_B: Tensor
    codes: list[Tensor]
    rrl: list[Tensor]
    clock: "Clock"

    def coded(self) -> list[list[Coded] | None]:
        """For each utterance what each table keeps of it, None where its embeddings are no numbers.

        Waits until the device is through with this batch.
        """
        self.clock.wait()
        ends = np.cumsum(self.lengths)[:-1]
        split = [np.split(codes_FN.numpy(), ends) for codes_FN in self.codes]
        usable = self.finite_B & ~torch.stack(self.rrl).isnan().any(dim=0)
        rrl = [rrl_B.tolist() for rrl_B in self.rrl]
        return [
            [Coded(codes_TN=c[i], rrl=r[i]) for c, r in zip(split, rrl, strict=True)] if good else None
            for i, good in enumerate(usable.tolist())
        ]


class Clock:
    """When the parts of a batch were done, by the host's time or the device's own."""

    def __init__(self, *, cuda: bool) -> None:
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._cuda = cuda
        self.mark()

    def mark(self) -> None:
        """The end of one part and the beginning of the next."""
        if self._cuda:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()
        else:
            self._times.append(time.perf_counter())

    def wait(self) -> None:
        """Wait until the last mark is through."""
        if self._cuda:
            self._events[-1].synchronize()

    def parts_s(self) -> list[float]:
        """Seconds between one mark and the next, all of which are through."""
        if self._cuda:
            return [a.elapsed_time(b) / 1000 for a, b in pairwise(self._events)]
        return [b - a for a, b in pairwise(self._times)]


def _to_host(x: Tensor) -> Tensor:
    if not x.is_cuda:
        return x
    # Only into pinned memory the copy does not make the host wait.
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
