"""Teachers: pretrained speech encoders from transformers that turn audio into embeddings to be quantized."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvqkd.models.teachers.base import Teacher, TeacherInfo
    from mvqkd.models.teachers.batch import EmbeddedBatch
    from mvqkd.models.teachers.errors import (
        NonFiniteEmbeddingError,
        TeacherLoadError,
        UtteranceTooLongError,
        UtteranceTooShortError,
        WaveformError,
    )
    from mvqkd.models.teachers.loading import load_teacher
    from mvqkd.models.teachers.preprocessor import read_sample_rate_hz, sample_rate_hz_from

__all__ = [
    "EmbeddedBatch",
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

_MODULES = {
    "EmbeddedBatch": "batch",
    "Teacher": "base",
    "TeacherInfo": "base",
    "load_teacher": "loading",
    "read_sample_rate_hz": "preprocessor",
    "sample_rate_hz_from": "preprocessor",
}


def __getattr__(name: str) -> Any:
    """Each name on demand: transformers and torch are slow to import, and who asks for a rate needs neither."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
