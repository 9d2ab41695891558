"""Cuts to teacher embeddings: decoding ahead, length-sorted batches, one utterance never costs another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from lhotse import MonoCut
from torch import Tensor

from models.teachers import NonFiniteEmbeddingError, Teacher, WaveformError
from workers.audio import AudioError, AudioLoader, decode_ahead, length_sorted_batches


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One cut's embeddings: float32 (T, dim) on the teacher's device, and the samples that went in."""

    cut: MonoCut
    embeddings_TD: Tensor
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A cut that gave no embeddings; `stage` is load or teacher."""

    cut: MonoCut
    stage: str
    error: str
    message: str


class Embedder:
    """Runs a teacher over cuts.

    Args:
        teacher: the loaded teacher.
        loader: gives waveforms at the teacher's rate.
        batch_seconds: upper bound of a padded batch.
        decode_threads: threads that decode audio ahead of the teacher.
    """

    def __init__(
        self, teacher: Teacher, loader: AudioLoader, *, batch_seconds: float, decode_threads: int
    ) -> None:
        self.teacher = teacher
        self._loader = loader
        self._batch_seconds = batch_seconds
        self._decode_threads = decode_threads

    def __call__(self, cuts: Sequence[MonoCut]) -> Iterator[Embedded | LeftOut]:
        """One result for each cut, longest cuts first.

        The batches depend on `cuts` alone, so the same cuts give the same embeddings, bit for bit, on the same
        kind of device.
        """
        batches = length_sorted_batches(cuts, [c.duration for c in cuts], batch_seconds=self._batch_seconds)
        ordered = [cut for batch in batches for cut in batch]
        # Two batches ahead: while the teacher works on one, the next is decoded.
        ahead = 2 * max(len(batch) for batch in batches) if batches else 1
        waveforms = decode_ahead(ordered, self._loader, threads=self._decode_threads, ahead=ahead)
        for batch in batches:
            good: list[tuple[MonoCut, Tensor]] = []
            for cut in batch:
                waveform_T = next(waveforms)
                if isinstance(waveform_T, AudioError):
                    yield _left_out(cut, "load", waveform_T)
                else:
                    good.append((cut, waveform_T))
            yield from self._encode(good)

    def _encode(self, batch: list[tuple[MonoCut, Tensor]]) -> Iterator[Embedded | LeftOut]:
        if not batch:
            return
        waveforms = [waveform_T for _, waveform_T in batch]
        try:
            embeddings: list[Tensor | None] = list(self.teacher.encode(waveforms))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            # Give the batch's memory back, then do it in halves.
            torch.cuda.empty_cache()
            middle = len(batch) // 2
            yield from self._encode(batch[:middle])
            yield from self._encode(batch[middle:])
            return
        except WaveformError as error:
            yield _left_out(batch[error.index][0], "teacher", error)
            yield from self._encode(batch[: error.index] + batch[error.index + 1 :])
            return
        except NonFiniteEmbeddingError as error:
            embeddings = error.embeddings
            for index in error.indexes:
                yield _left_out(batch[index][0], "teacher", error)
        for (cut, waveform_T), embeddings_TD in zip(batch, embeddings, strict=True):
            if embeddings_TD is not None:
                yield Embedded(cut=cut, embeddings_TD=embeddings_TD, num_samples=waveform_T.numel())


def _left_out(cut: MonoCut, stage: str, error: Exception) -> LeftOut:
    return LeftOut(cut=cut, stage=stage, error=type(error).__name__, message=f"{cut.id}: {error}".replace(
        f"{cut.id}: {cut.id}: ", f"{cut.id}: "))  # fmt: skip
