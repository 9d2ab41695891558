"""Teachers: pretrained speech encoders from transformers that turn audio into embeddings to be quantized."""

from typing import TYPE_CHECKING, Any

from mvqkd.models.teachers.base import (
    NonFiniteEmbeddingError,
    Teacher,
    TeacherInfo,
    TeacherLoadError,
    UtteranceTooLongError,
    UtteranceTooShortError,
    WaveformError,
)
from mvqkd.models.teachers.preprocessor import read_sample_rate_hz, sample_rate_hz_from

if TYPE_CHECKING:
    from mvqkd.models.teachers.loading import load_teacher

__all__ = [
    "NonFiniteEmbeddingError",
    "Teacher",
    "TeacherInfo",
    "TeacherLoadError",
    "UtteranceTooLongError",
    "UtteranceTooShortError",
    "WaveformError",
    "load_teacher",
    "read_sample_rate_hz",
    "sample_rate_hz_from",
]


def __getattr__(name: str) -> Any:
    """`load_teacher` on demand: transformers is slow to import, and only who loads a teacher needs it."""
    if name == "load_teacher":
        from mvqkd.models.teachers.loading import load_teacher

        return load_teacher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
