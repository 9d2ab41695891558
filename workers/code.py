"""A batch of waveforms to codes: the teacher, then each table's quantizer, and the results when they are there.

A table of embeddings has no quantizer: its frames are rounded to float16. On CUDA all of it is queued at once: the host
waits for a batch when the next one has been queued behind it.

Shape suffixes: F frames of all utterances, B utterances, T frames of one, N codebooks, D embedding dimension.
"""

import math
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

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Coded:
    """What a table of codes keeps of an utterance: uint8 (T, N) codes and the relative reconstruction loss."""

    codes_TN: np.ndarray
    rrl: float


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """What a table of embeddings keeps of an utterance: float16 (T, D). `largest` is of the numbers before, without
    their sign; where it is beyond `LARGEST_HALF` the utterance cannot be kept."""

    embeddings_TD: np.ndarray
    largest: float


@dataclass(frozen=True, kw_only=True)
class Target:
    """One table's part: the quantizer of the embeddings of a layer.

    Attributes:
        layer: of those that the teacher was loaded for.
        quantizer: fitted on its embeddings, on the teacher's device; None where embeddings themselves are kept.
        search: how codes are searched, as of `Coder`.
    """

    layer: int
    quantizer: Quantizer | None
    search: str = "full"


class BatchCoder:
    """Teacher and quantizers, one after the other.

    Args:
        teacher: the loaded teacher.
        targets: one or more.
        device: of the teacher.
    """

    def __init__(self, teacher: Teacher, targets: Sequence[Target], *, device: torch.device = CPU) -> None:
        self.teacher = teacher
        self._layers = sorted({target.layer for target in targets})
        self._coders: list[tuple[int, Coder | None]] = []
        self._cuda = device.type == "cuda"
        for target in targets:
            coder = None
            if target.quantizer is not None:
                coder = Coder(target.quantizer.eval(), search=target.search)
                self._cuda = self._cuda or target.quantizer.centers.is_cuda
            self._coders.append((self._layers.index(target.layer), coder))

    def launch(self, items: Sequence[Loaded]) -> "Launched":
        """Begin a batch; the frames of a window's context are not coded.

        Raises:
            WaveformError, torch.OutOfMemoryError: as of `Teacher.embed_batch`.
        """
        clock = Clock(cuda=self._cuda)
        batch = self._without_context(
            self.teacher.embed_batch([item.waveform_T for item in items], self._layers), items
        )
        clock.mark()
        parts = [
            RoundedBatch.of(batch.frames[index])
            if coder is None
            else CodedBatch(*coder(batch.frames[index], batch.lengths_B))
            for index, coder in self._coders
        ]
        # The copies stand in the queue too; the host looks at them once the last mark is through.
        launched = Launched(
            lengths=batch.lengths,
            finite_B=_to_host(batch.finite_B),
            parts=[part.to_host() for part in parts],
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


@dataclass(frozen=True)
class CodedBatch:
    """The codes of a batch, (F, N), and the RRL (B,) of its utterances, NaN where one could not be coded."""

    codes_FN: Tensor
    rrl_B: Tensor

    def to_host(self) -> "CodedBatch":
        """The same, under way to the host."""
        return CodedBatch(_to_host(self.codes_FN), _to_host(self.rrl_B))

    def split(self, lengths: Sequence[int]) -> list[Coded | None]:
        """What is kept of each utterance, None where it could not be coded."""
        codes = np.split(self.codes_FN.numpy(), np.cumsum(lengths)[:-1])
        return [
            None if math.isnan(rrl) else Coded(codes_TN=codes_TN, rrl=rrl)
            for codes_TN, rrl in zip(codes, self.rrl_B.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class RoundedBatch:
    """The embeddings of a batch as float16, (F, D), and the largest number of each frame before, (F,)."""

    embeddings_FD: Tensor
    largest_F: Tensor

    @classmethod
    def of(cls, x_FD: Tensor) -> "RoundedBatch":
        """Rounded to the nearest; infinity where it is beyond float16."""
        return cls(x_FD.half(), x_FD.abs().amax(dim=1))

    def to_host(self) -> "RoundedBatch":
        """The same, under way to the host."""
        return RoundedBatch(_to_host(self.embeddings_FD), _to_host(self.largest_F))

    def split(self, lengths: Sequence[int]) -> list[Rounded]:
        """What is kept of each utterance."""
        ends = np.cumsum(lengths)[:-1]
        # Copied: they wait until their shard is written, and pinned memory is scarce.
        embeddings = np.split(self.embeddings_FD.numpy().copy(), ends)
        largest = np.split(self.largest_F.numpy(), ends)
        return [
            Rounded(embeddings_TD=x_TD, largest=float(largest_T.max(initial=0.0)))
            for x_TD, largest_T in zip(embeddings, largest, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A batch that the device works on.

    Attributes:
        lengths: frames of each utterance.
        finite_B: whether its embeddings are numbers.
        parts: for each target, what was made of them.
        clock: of the teacher's and the quantizers' time.
    """

    lengths: tuple[int, ...]
    finite_B: Tensor
    parts: list[CodedBatch | RoundedBatch]
    clock: "Clock"

    def coded(self) -> list[list[Coded | Rounded] | None]:
        """For each utterance what each table keeps of it, None where its embeddings are no numbers.

        Waits until the device is through with this batch.
        """
        self.clock.wait()
        split = [part.split(self.lengths) for part in self.parts]
        results: list[list[Coded | Rounded] | None] = []
        for index, finite in enumerate(self.finite_B.tolist()):
            kept = [each for part in split if (each := part[index]) is not None]
            results.append(kept if finite and len(kept) == len(split) else None)
        return results


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
