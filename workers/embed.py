"""Cuts to teacher embeddings: decoding ahead, length-sorted batches, one utterance never costs another.

Shape suffixes: T teacher frames, D embedding dimension.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from lhotse import MonoCut
from torch import Tensor

from mvqkd.models.teachers import NonFiniteEmbeddingError, Teacher, WaveformError
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import decoded_batches, length_sorted_batches
from mvqkd.workers.teacher import TeacherConfig, open_teacher
from mvqkd.workers.windows import heard, kept_frames, kept_samples


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One cut's embeddings: float32 (T, dim) on the teacher's device, and the samples that went in."""

    cut: MonoCut
    embeddings_TD: Tensor
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A cut that gave no embeddings; `stage` is load, teacher or device (no memory for it)."""

    cut: MonoCut
    stage: str
    error: str
    message: str


@dataclass(frozen=True, kw_only=True)
class EmbedderSettings:
    """What an `Embedder` is built from, in the process where it works.

    Attributes:
        teacher: which, how and on which device.
        root: of the corpus; audio that the cuts name by a relative path lies below it.
        options: of the storage section.
        batch_seconds, decode_threads: as of `Embedder`.
        compute_threads: of torch.
    """

    teacher: TeacherConfig
    root: str | None
    options: Mapping[str, str]
    batch_seconds: float
    decode_threads: int
    compute_threads: int

    def build(self) -> "Embedder":
        """Load the teacher in this process."""
        torch.set_num_threads(self.compute_threads)
        teacher = open_teacher(self.teacher, options=self.options)
        loader = AudioLoader(teacher.info.sample_rate_hz, s3=self.options, root=self.root)
        return Embedder(teacher, loader, batch_seconds=self.batch_seconds, decode_threads=self.decode_threads)


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

        The batches depend on `cuts` alone, so the same cuts give the same embeddings, bit for bit, on the
        same kind of device, unless a batch has to be halved: the halves are other batches, and what else is
        in a batch shows in the last digits. Which batches are too large depends on the memory that is free.

        Raises:
            StorageError, OSError: audio cannot be reached, which is not the utterance's fault.
        """
        seconds = [heard(cut).duration for cut in cuts]
        batches = length_sorted_batches(cuts, seconds, batch_seconds=self._batch_seconds)
        decoded = decoded_batches(batches, lambda cut: self._loader(heard(cut)), threads=self._decode_threads)
        for batch, waveforms in zip(batches, decoded, strict=True):
            good: list[tuple[MonoCut, Tensor]] = []
            for cut, waveform_T in zip(batch, waveforms, strict=True):
                if isinstance(waveform_T, UtteranceError):
                    yield LeftOut(cut=cut, stage="load", error="UtteranceError", message=str(waveform_T))
                else:
                    good.append((cut, waveform_T))
            yield from self._encode(good)

    def _encode(self, batch: list[tuple[MonoCut, Tensor]]) -> Iterator[Embedded | LeftOut]:
        waiting = [batch]
        again: list[tuple[MonoCut, Tensor]] | None = None
        while waiting:
            part = waiting.pop(0)
            if not part:
                continue
            embeddings, leave_out, no_memory = self._try(part)
            yield from leave_out.values()
            if embeddings is not None:
                for (cut, waveform_T), embeddings_TD in zip(part, embeddings, strict=True):
                    if embeddings_TD is not None:
                        yield self._embedded(cut, embeddings_TD, waveform_T.numel())
            elif leave_out:
                waiting.insert(0, [item for index, item in enumerate(part) if index not in leave_out])
            elif part is again:
                (cut, waveform_T), sample_rate_hz = part[0], self.teacher.info.sample_rate_hz
                problem = (
                    f"{cut.id}: the device has no memory for an utterance of "
                    f"{waveform_T.numel() / sample_rate_hz:.1f} s alone; lower corpus.max_duration_s, use a "
                    f"smaller teacher.dtype, a larger device, or let nothing else run on it ({no_memory})"
                )
                yield LeftOut(cut=cut, stage="device", error="OutOfMemoryError", message=problem)
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

    def _embedded(self, cut: MonoCut, embeddings_TD: Tensor, num_samples: int) -> Embedded:
        """Without the context of a window."""
        info = self.teacher.info
        return Embedded(
            cut=cut,
            embeddings_TD=embeddings_TD[kept_frames(cut, info)],
            num_samples=kept_samples(cut, num_samples, info.sample_rate_hz),
        )

    def _try(
        self, batch: list[tuple[MonoCut, Tensor]]
    ) -> tuple[list[Tensor | None] | None, dict[int, LeftOut], str]:
        """Embeddings, None when nothing was computed; what has to be left out, by position in the batch; and
        what the device said when it had no room for so large a batch.

        The caller acts on that only after this function has returned, because the exception holds on to the
        tensors that filled the device.
        """
        try:
            return list(self.teacher.encode([waveform_T for _, waveform_T in batch])), {}, ""
        except torch.OutOfMemoryError as error:
            return None, {}, str(error)
        except WaveformError as error:
            # The teacher counts waveforms of its batch, which says nothing to a reader.
            problem = str(error).removeprefix(f"waveform {error.index} ")
            return None, {error.index: _left_out(batch[error.index][0], error, problem)}, ""
        except NonFiniteEmbeddingError as error:
            problem = f"the teacher's embeddings hold NaN or infinity: {str(error).rpartition(': ')[2]}"
            bad = {index: _left_out(batch[index][0], error, problem) for index in error.indexes}
            return error.embeddings, bad, ""


def _left_out(cut: MonoCut, error: Exception, problem: str) -> LeftOut:
    return LeftOut(cut=cut, stage="teacher", error=type(error).__name__, message=f"{cut.id}: {problem}")
