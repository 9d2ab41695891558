"""One training example: a row of the index table, its audio's features, its units and its targets.

Shape suffixes: T frames, F features, U units.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.alignment import IGNORE
from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.models.students.base import Student
from mvqkd.models.students.units import Units
from mvqkd.storage.errors import StaleCodesError
from mvqkd.storage.table import check_row_matches
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError, cut_from_json, identity
from mvqkd.workers.distill.target_sources import TargetSource

RowKey = tuple[str, int]
IDENTITY_COLUMNS = ("cut_id", "recording_id", "channel", "start", "duration", "speed", "num_samples")


def padding_of(spec: TargetSpec) -> float:
    """What stands where there is no target, as heads take it."""
    return IGNORE if spec.kind == "codes" else math.nan


def width_of(spec: TargetSpec) -> int:
    """Numbers of a frame's target."""
    width = spec.num_codebooks if spec.kind == "codes" else spec.dim
    assert width is not None, "checked when the spec was built"
    return width


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance: features (T, F), int64 units (U,), and targets (S, width) by the name of their head."""

    cut_id: str
    features_TF: Tensor
    units_U: Tensor
    targets: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples that are trained on together. Empty when the audio of all was bad."""

    examples: tuple[Example, ...]
    specs: Mapping[str, TargetSpec]

    @property
    def cut_ids(self) -> tuple[str, ...]:
        """Ids of the cuts."""
        return tuple(example.cut_id for example in self.examples)

    def padded(
        self, features: list[Tensor], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Tensors as `DistillationModel.forward` takes them.

        Args:
            features: (T, F) of each example, perhaps augmented.
            device: of the model.
        """

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        targets = {
            name: moved(
                pad_sequence(
                    [example.targets[name] for example in self.examples],
                    batch_first=True,
                    padding_value=padding_of(spec),
                )
            )
            for name, spec in self.specs.items()
        }
        return (
            moved(pad_sequence(features, batch_first=True)),
            moved(torch.tensor([len(f) for f in features])),
            moved(pad_sequence([example.units_U for example in self.examples], batch_first=True)),
            moved(torch.tensor([len(example.units_U) for example in self.examples])),
            targets,
        )


class ExampleMaker:
    """Makes examples of rows. Safe to call from several threads.

    Args:
        student: whose features, frames and rate count.
        units: output units of the student.
        sources: of targets, by the name of their head.
        loader: audio at the student's sampling rate.
        table_rate_hz: sampling rate of the table's `num_samples`.
        cache_mb: features kept in memory between epochs.
    """

    def __init__(
        self,
        student: Student,
        units: Units,
        sources: Mapping[str, TargetSource],
        *,
        loader: AudioLoader,
        table_rate_hz: int,
        cache_mb: int = 0,
    ) -> None:
        self._student, self._units, self._sources, self._loader = student, units, sources, loader
        self._table_rate_hz = table_rate_hz
        self._cache: dict[RowKey, Tensor] = {}
        self._cache_bytes_left = cache_mb * 2**20
        self._lock = threading.Lock()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that `__call__` needs."""
        own = (*IDENTITY_COLUMNS, "text", "cut")
        others = {column for source in self._sources.values() for column in source.columns}
        return (*own, *sorted(others - set(own)))

    def __call__(self, item: tuple[RowKey, Mapping[str, Any]]) -> Example:
        """The example of a row, which has `columns`.

        Raises:
            UtteranceError: its audio, text or targets cannot be used.
        """
        key, row = item
        features_TF = self._features(key, row)
        num_frames = self._student.num_frames(features_TF.shape[0])
        try:
            targets = {name: source.targets(row, num_frames) for name, source in self._sources.items()}
            units_U = torch.tensor(self._units.encode(row["text"]), dtype=torch.long)
        except ValueError as error:
            raise UtteranceError(row["cut_id"], str(error)) from error
        return Example(cut_id=row["cut_id"], features_TF=features_TF, units_U=units_U, targets=targets)

    def _features(self, key: RowKey, row: Mapping[str, Any]) -> Tensor:
        cached = self._cache.get(key)
        if cached is not None:
            return cached.float()
        cut = cut_from_json(row["cut"])
        waveform_T = self._loader(cut)
        num_samples = self._at_table_rate(waveform_T.numel(), row["num_samples"])
        try:
            check_row_matches(row, **identity(cut, num_samples))
        except StaleCodesError as error:
            raise UtteranceError(row["cut_id"], str(error)) from error
        frames = self._student.frames
        if waveform_T.numel() < frames.min_samples:
            raise UtteranceError(
                row["cut_id"],
                f"{waveform_T.numel()} samples are too few for one frame of the student, which takes "
                f"{frames.min_samples / frames.sample_rate_hz} s; raise corpus.min_duration_s",
            )
        # Rounded even when it is not kept, so that the size of the cache does not change the training.
        features_TF = self._student.features(waveform_T).half()
        size = features_TF.numel() * 2
        with self._lock:
            if size <= self._cache_bytes_left:
                self._cache_bytes_left -= size
                self._cache[key] = features_TF
        return features_TF.float()

    def _at_table_rate(self, num_samples: int, then: int) -> int:
        """Samples at the teacher's rate of audio that was loaded at the student's."""
        own_rate_hz = self._student.frames.sample_rate_hz
        if own_rate_hz == self._table_rate_hz:
            return num_samples
        # Resampling rounds the number of samples, either way, to one at the lower rate.
        there = num_samples * self._table_rate_hz / own_rate_hz
        return then if abs(there - then) <= 1 + self._table_rate_hz / own_rate_hz else round(there)
