"""The errors of teachers; light, since planning asks about teachers without loading them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class TeacherLoadError(ValueError):
    """A teacher that cannot be loaded: not there, not reachable, of another architecture or incomplete."""


class TeacherUnreachableError(TeacherLoadError):
    """The hub, where the teacher is, cannot be asked now, and what is needed of it is not kept here."""


class WaveformError(ValueError):
    """A waveform that cannot be embedded; ``index`` is its position in the list given to the teacher."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class UtteranceTooShortError(WaveformError):
    """A waveform with fewer than ``info.min_samples`` samples."""


class UtteranceTooLongError(WaveformError):
    """A waveform with more than ``info.max_samples`` samples."""


class NonFiniteEmbeddingError(ValueError):
    """The teacher made NaN or infinity out of finite audio.

    ``indexes`` names those inputs; ``embeddings`` has one entry per input in order, None for those in
    ``indexes``, so that the caller can leave them out and keep the others without computing them again.
    ``layers`` has such a list for each layer that was asked for; ``embeddings`` is the first of them.
    """

    def __init__(
        self,
        *,
        indexes: tuple[int, ...],
        embeddings: "list[Tensor | None]",
        dtype: str,
        layers: "list[list[Tensor | None]] | None" = None,
    ) -> None:
        remedy = (
            "leave them out" if dtype == "float32" else f"load the teacher with dtype float32, not {dtype}"
        )
        super().__init__(
            f"the teacher's embeddings of waveforms {list(indexes)} hold NaN or infinity: {remedy}"
        )
        self.indexes = indexes
        self.embeddings = embeddings
        self.layers = [embeddings] if layers is None else layers
