"""Cuts to teacher embeddings, for the fit of a quantizer. One utterance never costs another.

Shape suffixes: T teacher frames, D embedding dimension.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from lhotse import MonoCut
from torch import Tensor

from mvqkd.models.teachers import NonFiniteEmbeddingError, Teacher
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.feed import Feeder, LeftOut, Loaded
from mvqkd.workers.teacher import TeacherConfig, open_teacher
from mvqkd.workers.windows import kept_frames


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """One cut's embeddings: float32 (T, dim) on the teacher's device, and its samples; without a window's context."""

    cut: MonoCut
    embeddings_TD: Tensor
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class EmbedderSettings:
    """What an `Embedder` is built from, in the process where it works.

    Attributes:
        teacher: which, how and on which device.
        root: of the corpus; audio that the cuts name by a relative path lies below it.
        options: of the storage section.
        batch_seconds, decode_threads: as of `Feeder`.
        compute_threads: of torch.
        layers: that embeddings may be asked of; the teacher's own by default.
    """

    teacher: TeacherConfig
    root: str | None
    options: Mapping[str, str]
    batch_seconds: float
    decode_threads: int
    compute_threads: int
    layers: tuple[int, ...] | None = None

    def build(self) -> "Embedder":
        """Load the teacher in this process."""
        torch.set_num_threads(self.compute_threads)
        teacher = open_teacher(self.teacher, options=self.options, layers=self.layers)
        loader = AudioLoader(teacher.info.sample_rate_hz, s3=self.options, root=self.root)
        return Embedder(teacher, loader, batch_seconds=self.batch_seconds, decode_threads=self.decode_threads)


class Embedder:
    """Runs a teacher over cuts.

    Args:
        teacher: the loaded teacher.
        loader: gives waveforms at the teacher's rate.
        batch_seconds, decode_threads: as of `Feeder`.
    """

    def __init__(
        self, teacher: Teacher, loader: AudioLoader, *, batch_seconds: float, decode_threads: int
    ) -> None:
        self.teacher = teacher
        self.feeder = Feeder(loader, batch_seconds=batch_seconds, decode_threads=decode_threads)

    def __call__(self, cuts: Sequence[MonoCut]) -> Iterator[Embedded | LeftOut]:
        """One result for each cut, longest cuts first; the batches are those of `Feeder.begin`.

        Raises:
            StorageError, OSError: audio cannot be reached, which is not the utterance's fault.
        """
        with self.feeder.begin(cuts) as feeding:
            for done in feeding.run(self._encode):
                if isinstance(done, LeftOut):
                    yield done
                    continue
                embeddings, error = done.result
                for item, embeddings_TD in zip(done.items, embeddings, strict=True):
                    if embeddings_TD is None:
                        assert error is not None
                        yield LeftOut.by_teacher(item.cut, error, not_finite(error))
                    else:
                        yield Embedded(
                            cut=item.cut,
                            embeddings_TD=embeddings_TD[kept_frames(item.cut, self.teacher.info)],
                            num_samples=item.num_samples,
                        )

    def _encode(self, batch: list[Loaded]) -> tuple[Sequence[Tensor | None], NonFiniteEmbeddingError | None]:
        try:
            return self.teacher.encode([item.waveform_T for item in batch]), None
        except NonFiniteEmbeddingError as error:
            return error.embeddings, error


def not_finite(error: NonFiniteEmbeddingError) -> str:
    """What to say of an utterance whose embeddings are no numbers."""
    return f"the teacher's embeddings hold NaN or infinity: {str(error).rpartition(': ')[2]}"
