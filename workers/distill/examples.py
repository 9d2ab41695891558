"""One training example: a row of the index table, its audio's features, its units and its targets.

Shape suffixes: T frames, F features, U units.
"""

import copy
import math
import threading
from collections.abc import Mapping, Sequence
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
from mvqkd.workers.distill.noise import NoiseMixer
from mvqkd.workers.distill.rows import RowKey
from mvqkd.workers.distill.target_sources import IDENTITY_COLUMNS, SHARD, JoinedTable, TargetSource


def padding_of(spec: TargetSpec) -> float:
    """What stands where there is no target, as heads take it."""
    return IGNORE if spec.kind == "codes" else math.nan


def width_of(spec: TargetSpec) -> int:
    """Numbers of a frame's target."""
    width = spec.num_codebooks if spec.kind == "codes" else spec.dim
    assert width is not None, "checked when the spec was built"
    return width


def nothing_to_predict(spec: TargetSpec, num_frames: int) -> Tensor:
    """Targets (num_frames, width) of an utterance that has none."""
    return torch.full((num_frames, width_of(spec)), padding_of(spec))


@dataclass(frozen=True, kw_only=True)
class RowToMake:
    """A row of an index table that an example is made of; `epoch` is what noise is drawn by."""

    key: RowKey
    row: Mapping[str, Any]
    transcribed: bool = True
    epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance: features (T, F), int64 units (U,), and targets (S, width) by the name of their head.

    `waveform_T`, float32, is kept where a teacher is to hear it.
    """

    cut_id: str
    features_TF: Tensor
    units_U: Tensor
    targets: Mapping[str, Tensor]
    waveform_T: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples that are trained on together. Empty when the audio of all was bad.

    `transcribed`: whether their units count. `number`: of the batch among all of its step, what its masks are drawn by.
    """

    examples: tuple[Example, ...]
    specs: Mapping[str, TargetSpec]
    transcribed: bool = True
    number: int = 0

    @property
    def cut_ids(self) -> tuple[str, ...]:
        """Ids of the cuts."""
        return tuple(example.cut_id for example in self.examples)

    def padded(
        self, features: list[Tensor], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, dict[str, Tensor]]:
        """Tensors as `DistillationModel.forward` takes them; no units where they do not count.

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
        features_BTF = moved(pad_sequence(features, batch_first=True))
        lengths_B = moved(torch.tensor([len(f) for f in features]))
        if not self.transcribed:
            return features_BTF, lengths_B, None, None, targets
        units_BU = moved(pad_sequence([example.units_U for example in self.examples], batch_first=True))
        unit_lengths_B = moved(torch.tensor([len(example.units_U) for example in self.examples]))
        return features_BTF, lengths_B, units_BU, unit_lengths_B, targets


class ExampleMaker:
    """Makes examples of rows. Safe to call from several threads, and to be sent to other processes.

    Args:
        student: whose features, frames and rate count.
        units: output units of the student.
        sources: of targets, by the name of their head.
        loaders: audio at the student's sampling rate, by the number of the table.
        table_rate_hz: sampling rate of the tables' `num_samples`.
        cache_mb: features kept in memory between epochs, where they are the same in each.
        noise: mixed into the audio; the targets stay those of the clean one.
        keep_waveform: whether examples hold the waveform, without noise.
    """

    def __init__(
        self,
        student: Student,
        units: Units,
        sources: Mapping[str, TargetSource],
        *,
        loaders: Sequence[AudioLoader],
        table_rate_hz: int,
        cache_mb: int = 0,
        noise: NoiseMixer | None = None,
        keep_waveform: bool = False,
    ) -> None:
        self._student, self._units, self._sources, self._loaders = student, units, sources, loaders
        self._table_rate_hz = table_rate_hz
        self._noise, self._keep_waveform = noise, keep_waveform
        self._cache: dict[RowKey, Tensor] = {}
        self._cache_bytes_left = 0 if noise or keep_waveform else cache_mb * 2**20
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without what is cached here, and with the student on the CPU."""
        state = self.__dict__.copy()
        del state["_lock"]
        return {**state, "_cache": {}, "_cache_bytes_left": 0, "_student": copy.deepcopy(self._student).cpu()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that `__call__` needs."""
        own = (*IDENTITY_COLUMNS, "text", "cut")
        others = {column for source in self._sources.values() for column in source.columns} - {SHARD}
        return (*own, *sorted(others - set(own)))

    def begin(self, item: RowToMake) -> None:
        """Begin to fetch the row's audio, if it lies in a store and is needed."""
        loader, cut = self._loaders[item.key.table], item.row["cut"]
        # Looking for it takes less time than reading the whole line.
        if item.key not in self._cache and (loader.root_is_in_store or '"url"' in cut):
            loader.begin(cut_from_json(cut))

    def __call__(self, item: RowToMake) -> Example:
        """The example of a row, which has `columns`.

        Raises:
            UtteranceError: its audio, text or targets cannot be used.
        """
        row = item.row
        features_TF, waveform_T = self._features(item)
        num_frames = self._student.num_frames(features_TF.shape[0])
        try:
            targets = self._targets(item, num_frames)
            units = self._units.encode(row["text"]) if item.transcribed else []
        except ValueError as error:
            raise UtteranceError(row["cut_id"], str(error)) from error
        return Example(
            cut_id=row["cut_id"],
            features_TF=features_TF,
            units_U=torch.tensor(units, dtype=torch.long),
            targets=targets,
            waveform_T=waveform_T if self._keep_waveform else None,
        )

    def _targets(self, item: RowToMake, num_frames: int) -> dict[str, Tensor]:
        row = {**item.row, SHARD: item.key.shard}
        return {
            # The cuts of a table that is read for its speech alone are in none of those that are joined.
            name: nothing_to_predict(source.spec, num_frames)
            if item.key.table and isinstance(source, JoinedTable)
            else source.targets(row, num_frames)
            for name, source in self._sources.items()
        }

    def _features(self, item: RowToMake) -> tuple[Tensor, Tensor | None]:
        """Of a row, and the waveform that they are made of unless they were cached."""
        key = item.key
        cached = self._cache.get(key)
        if cached is not None:
            return cached.float(), None
        waveform_T = self._waveform(item)
        heard_T = waveform_T
        if self._noise is not None:
            heard_T = self._noise(waveform_T, f"{item.epoch}/{key.table}/{item.row['cut_id']}")
        # Rounded even when it is not kept, so that the size of the cache does not change the training.
        features_TF = self._student.features(heard_T).half()
        size = features_TF.numel() * 2
        with self._lock:
            if size <= self._cache_bytes_left:
                self._cache_bytes_left -= size
                self._cache[key] = features_TF
        return features_TF.float(), waveform_T

    def _waveform(self, item: RowToMake) -> Tensor:
        row = item.row
        cut = cut_from_json(row["cut"])
        waveform_T = self._loaders[item.key.table](cut)
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
        return waveform_T

    def _at_table_rate(self, num_samples: int, then: int) -> int:
        """Samples at the teacher's rate of audio that was loaded at the student's."""
        own_rate_hz = self._student.frames.sample_rate_hz
        if own_rate_hz == self._table_rate_hz:
            return num_samples
        # Resampling rounds the number of samples, either way, to one at the lower rate.
        there = num_samples * self._table_rate_hz / own_rate_hz
        return then if abs(there - then) <= 1 + self._table_rate_hz / own_rate_hz else round(there)
