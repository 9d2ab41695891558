"""Cuts to a teacher: decoding ahead, length-sorted batches, halves where the device has no room for a batch.

Shape suffixes: T samples.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import torch
from lhotse import MonoCut
from torch import Tensor

from mvqkd.models.teachers import WaveformError
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import DecodedBatches, length_sorted_batches
from mvqkd.workers.stopwatch import Stopwatch
from mvqkd.workers.windows import has_context, heard, kept_samples

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A cut that gave no embeddings; `stage` is load, teacher or device (no memory for it)."""

    cut: MonoCut
    stage: str
    error: str
    message: str

    @classmethod
    def by_teacher(cls, cut: MonoCut, error: Exception, problem: str) -> Self:
        """What the teacher did not take or make sense of."""
        return cls(cut=cut, stage="teacher", error=type(error).__name__, message=f"{cut.id}: {problem}")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A cut and its audio, float32 (T,) at the teacher's rate; that of a window with its context.

    `num_samples` are the cut's own.
    """

    cut: MonoCut
    waveform_T: Tensor
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Computed(Generic[Result]):
    """A batch and what was computed of it."""

    items: list[Loaded]
    result: Result


class Feeder:
    """Feeds a teacher; `begin` can be called while another feeding is under way.

    Args:
        loader: gives waveforms at the teacher's rate.
        batch_seconds: upper bound of a padded batch.
        decode_threads: threads that decode audio ahead of the teacher.
    """

    def __init__(self, loader: AudioLoader, *, batch_seconds: float, decode_threads: int) -> None:
        self._loader = loader
        self._batch_seconds = batch_seconds
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")

    def begin(self, cuts: Sequence[MonoCut]) -> "Feeding":
        """Begin to decode the first batches of these cuts, longest first.

        The batches depend on `cuts` alone, so the same cuts give the same embeddings, bit for bit, on the
        same kind of device, unless a batch has to be halved: the halves are other batches, and what else is
        in a batch shows in the last digits. Which batches are too large depends on the memory that is free.
        """
        seconds = [heard(cut).duration for cut in cuts]
        batches = length_sorted_batches(cuts, seconds, batch_seconds=self._batch_seconds)
        decoded = DecodedBatches(
            batches, lambda cut: self._loader(heard(cut)), pool=self._pool, begin=self._loader.begin
        )
        return Feeding(batches, decoded, self._loader)


class Feeding:
    """The batches of some cuts on their way to the teacher; leaving the block drops what has not been decoded."""

    def __init__(
        self,
        batches: Sequence[Sequence[MonoCut]],
        decoded: DecodedBatches[MonoCut, Tensor],
        loader: AudioLoader,
    ) -> None:
        self._batches, self._decoded, self._loader = batches, decoded, loader
        self.waited = Stopwatch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoded.__exit__()

    @property
    def num_ready(self) -> int:
        """Batches that are decoded and wait for the teacher."""
        return self._decoded.num_ready

    def run(self, compute: Callable[[list[Loaded]], Result]) -> Iterator[Computed[Result] | LeftOut]:
        """Compute every batch; each cut is in one result or left out.

        Args:
            compute: takes cuts with their audio, longest first. It may raise torch.OutOfMemoryError, then it is called
                with halves, and `WaveformError`, then with the others.

        Raises:
            StorageError, OSError: audio cannot be reached, which is not the utterance's fault.
        """
        for batch in self._batches:
            with self.waited:
                waveforms = next(self._decoded)
            good: list[Loaded] = []
            for cut, waveform_T in zip(batch, waveforms, strict=True):
                if isinstance(waveform_T, UtteranceError):
                    yield LeftOut(cut=cut, stage="load", error="UtteranceError", message=str(waveform_T))
                else:
                    num_samples = waveform_T.numel()
                    if has_context(cut):
                        num_samples = kept_samples(cut, self._loader.sample_rate_hz)
                    good.append(Loaded(cut=cut, waveform_T=waveform_T, num_samples=num_samples))
            yield from self._computed(good, compute)

    def _computed(
        self, batch: list[Loaded], compute: Callable[[list[Loaded]], Result]
    ) -> Iterator[Computed[Result] | LeftOut]:
        waiting = [batch]
        again: list[Loaded] | None = None
        while waiting:
            part = waiting.pop(0)
            if not part:
                continue
            computed, refused, no_memory = _attempt(part, compute)
            if computed is not None:
                yield computed
            elif refused is not None:
                yield LeftOut.by_teacher(part[refused.index].cut, refused, _without_index(refused))
                waiting.insert(0, part[: refused.index] + part[refused.index + 1 :])
            elif part is again:
                yield self._too_large(part[0], no_memory)
            else:
                # Too large for the device: give the memory back, then do it in halves. One utterance is tried
                # once more as it is, since what was given back may do.
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                if len(part) == 1:
                    again = part
                    waiting.insert(0, part)
                else:
                    middle = len(part) // 2
                    waiting[:0] = [part[:middle], part[middle:]]

    def _too_large(self, item: Loaded, no_memory: str) -> LeftOut:
        seconds = item.waveform_T.numel() / self._loader.sample_rate_hz
        problem = (
            f"{item.cut.id}: the device has no memory for an utterance of {seconds:.1f} s alone; lower "
            "corpus.max_duration_s, use a smaller teacher.dtype, a larger device, or let nothing else run on it "
            f"({no_memory})"
        )
        return LeftOut(cut=item.cut, stage="device", error="OutOfMemoryError", message=problem)


def _attempt(
    batch: list[Loaded], compute: Callable[[list[Loaded]], Result]
) -> tuple[Computed[Result] | None, WaveformError | None, str]:
    """What was computed; or what the teacher does not take; or what the device said when it had no room for so large a
    batch.

    The caller acts on that only after this function has returned, because the exception holds on to the tensors that
    filled the device.
    """
    try:
        return Computed(items=batch, result=compute(batch)), None, ""
    except torch.OutOfMemoryError as error:
        return None, None, str(error)
    except WaveformError as error:
        return None, error.with_traceback(None), ""


def _without_index(error: WaveformError) -> str:
    # The teacher counts waveforms of its batch, which says nothing to a reader.
    return str(error).removeprefix(f"waveform {error.index} ")
