"""Teachers: pretrained speech encoders from transformers that turn audio into embeddings to be quantized."""

from models.teachers.base import (
    NonFiniteEmbeddingError,
    Teacher,
    TeacherInfo,
    UtteranceTooLongError,
    UtteranceTooShortError,
    WaveformError,
)
from models.teachers.checkpoint import TeacherLoadError
from models.teachers.loading import load_teacher

__all__ = [
    "NonFiniteEmbeddingError",
    "Teacher",
    "TeacherInfo",
    "TeacherLoadError",
    "UtteranceTooLongError",
    "UtteranceTooShortError",
    "WaveformError",
    "load_teacher",
]
