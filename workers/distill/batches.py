"""Batches of audio, transcripts and code targets from an index table, the same on every resume.

The batches of an epoch follow from the table, the seed and the epoch alone, so a position in the data is two
numbers, and going back to it reads nothing but lengths.
"""

import random
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.alignment import IGNORE, AlignmentError, FrameAlignment
from mvqkd.models.features import LogMel
from mvqkd.models.students.conformer import MIN_SAMPLES, subsampled_length
from mvqkd.models.students.units import Units
from mvqkd.storage.errors import StaleCodesError
from mvqkd.storage.rows import arrow_to_rows
from mvqkd.storage.table import IndexTable, check_row_matches
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError, cut_from_json, identity
from mvqkd.workers.decode_ahead import decode_ahead, length_sorted_batches

WINDOW_SHARDS = 8
MAX_LEFT_OUT = 0.05

RowKey = tuple[str, int]
Durations = dict[str, list[float | None]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A padded batch; shapes as `DistillationModel.forward` takes them. Empty when all its audio was bad."""

    cut_ids: tuple[str, ...]
    features: tuple[Tensor, ...]
    units: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    def padded(self, features: list[Tensor], device: torch.device) -> tuple[Tensor, ...]:
        """Tensors for the model: `features` (perhaps augmented), lengths, units, unit lengths, targets."""
        lengths_B = torch.tensor([len(f) for f in features])
        unit_lengths_B = torch.tensor([len(u) for u in self.units])
        tensors = (
            pad_sequence(features, batch_first=True),
            lengths_B,
            pad_sequence(list(self.units), batch_first=True),
            unit_lengths_B,
            pad_sequence(list(self.targets), batch_first=True, padding_value=IGNORE),
        )
        return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)


def scan_table(table: IndexTable) -> tuple[Durations, list[str]]:
    """What a training has to know of a table before its first step, in one reading of it.

    Returns:
        The duration of every row that has a transcript, None for the others, by shard; and the transcripts.

    Raises:
        ValueError: no row has a transcript.
        TableError: a damaged file.
    """

    def read(name: str) -> tuple[list[float | None], list[str]]:
        columns = table.read_shard(name, columns=["duration", "text"]).to_pydict()
        durations, texts = [], []
        for duration, text in zip(columns["duration"], columns["text"], strict=True):
            usable = bool(text) and not text.isspace()
            durations.append(duration if usable else None)
            texts += [text] if usable else []
        return durations, texts

    names = sorted(table.committed())
    all_durations: Durations = {}
    all_texts: list[str] = []
    # Several at a time: the table may be far away, and shards by the thousand.
    for name, result in zip(names, decode_ahead(names, read, threads=8, ahead=16), strict=True):
        assert not isinstance(result, UtteranceError)
        all_durations[name], texts = result
        all_texts += texts
    if not all_texts:
        raise ValueError(
            f"{table.location.url}: no row has a transcript, so no student can be trained on it; "
            "extract a corpus that has transcripts"
        )
    return all_durations, all_texts


class TableBatches:
    """Training batches of one rank.

    Shards are shuffled every epoch; rows are shuffled and batched by length inside windows of eight shards.
    The batches are dealt out to the ranks; all ranks have the same number, so that fewer batches than there
    are ranks may be left over in an epoch.

    Args:
        table: the index table.
        durations: from `scan_table`; rows without one are passed over.
        loader: audio at the table's sampling rate.
        units: output units of the student.
        alignment: teacher frames to student frames.
        batch_seconds: upper bound of a padded batch.
        seed: of the order.
        codebooks: take only the first so many codes of a frame; None takes all.
        cache_mb: features kept in memory between epochs.
        decode_threads: threads that decode ahead.
        rank, world_size: this process among all.

    Raises:
        ValueError: there are fewer batches than ranks.
    """

    def __init__(
        self,
        table: IndexTable,
        durations: Durations,
        *,
        loader: AudioLoader,
        units: Units,
        alignment: FrameAlignment,
        batch_seconds: float,
        seed: int,
        codebooks: int | None = None,
        cache_mb: int = 0,
        decode_threads: int = 2,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._table, self._loader, self._units, self._alignment = table, loader, units, alignment
        self._batch_seconds, self._seed, self._threads = batch_seconds, seed, decode_threads
        self._codebooks = codebooks
        self._rank, self._world_size = rank, world_size
        self._log_mel = LogMel(table.contract.sample_rate_hz)
        self._shards: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._cache: dict[RowKey, Tensor] = {}
        self._cache_bytes_left = cache_mb * 2**20
        self._lock = threading.Lock()
        self.left_out: dict[str, str] = {}
        self._durations = durations
        self.num_rows = sum(d is not None for column in durations.values() for d in column)
        if not self.plan_epoch(0):
            raise ValueError(
                f"{table.location.url}: {self.num_rows} utterances make too few batches for {world_size} "
                "training workers; lower distill.workers or distill.batch_seconds"
            )

    def plan_epoch(self, epoch: int) -> list[list[RowKey]]:
        """The rows of every batch of this rank, in order."""
        order = sorted(self._durations)
        rng = random.Random(f"{self._seed}/{epoch}")
        rng.shuffle(order)
        batches: list[list[RowKey]] = []
        for start in range(0, len(order), WINDOW_SHARDS):
            keys, lengths = [], []
            for name in order[start : start + WINDOW_SHARDS]:
                for row, duration in enumerate(self._durations[name]):
                    if duration is not None:
                        keys.append((name, row))
                        # Lengths are blurred, so that an utterance meets other neighbours in every epoch.
                        # Upwards only, so that a batch stays within its bound.
                        lengths.append(duration * rng.uniform(1.0, 1.2))
            window = length_sorted_batches(keys, lengths, batch_seconds=self._batch_seconds)
            rng.shuffle(window)
            batches += window
        steps = len(batches) // self._world_size
        return batches[self._rank :: self._world_size][:steps]

    def epoch(self, epoch: int, *, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_step` on.

        Raises:
            ValueError: more than 5 % of the rows turned out to be unusable.
        """
        plan = self.plan_epoch(epoch)[first_step:]
        keys = [key for batch in plan for key in batch]
        # The next batch is read while the model works on this one.
        ahead = 2 * max((len(batch) for batch in plan), default=1)
        examples = decode_ahead(self._with_rows(keys), self._example, threads=self._threads, ahead=ahead)
        for batch in plan:
            good = []
            for _ in batch:
                example = next(examples)
                if isinstance(example, UtteranceError):
                    self._leave_out(example)
                else:
                    good.append(example)
            yield Batch(
                cut_ids=tuple(e[0] for e in good),
                features=tuple(e[1] for e in good),
                units=tuple(e[2] for e in good),
                targets=tuple(e[3] for e in good),
            )

    def _with_rows(self, keys: list[RowKey]) -> Iterator[tuple[RowKey, dict[str, Any]]]:
        for name, row in keys:
            if name not in self._shards:
                self._shards[name] = list(arrow_to_rows(self._table.read_shard(name)))
                while len(self._shards) > WINDOW_SHARDS + 1:
                    self._shards.popitem(last=False)
            yield (name, row), self._shards[name][row]

    def _example(self, item: tuple[RowKey, dict[str, Any]]) -> tuple[str, Tensor, Tensor, Tensor]:
        key, row = item
        features_TF = self._features(key, row)
        num_frames = subsampled_length(features_TF.shape[0])
        try:
            targets_TK = self._alignment(torch.tensor(row["codes"])[:, : self._codebooks], num_frames)
            units_U = torch.tensor(self._units.encode(row["text"]), dtype=torch.long)
        except (AlignmentError, ValueError) as error:
            raise UtteranceError(row["cut_id"], str(error)) from error
        return row["cut_id"], features_TF, units_U, targets_TK

    def _features(self, key: RowKey, row: dict[str, Any]) -> Tensor:
        cached = self._cache.get(key)
        if cached is not None:
            return cached.float()
        cut = cut_from_json(row["cut"])
        waveform_T = self._loader(cut)
        try:
            check_row_matches(row, **identity(cut, waveform_T.numel()))
        except StaleCodesError as error:
            raise UtteranceError(row["cut_id"], str(error)) from error
        if waveform_T.numel() < MIN_SAMPLES:
            seconds = MIN_SAMPLES / self._loader.sample_rate_hz
            raise UtteranceError(
                row["cut_id"],
                f"{waveform_T.numel()} samples are too few for one frame of the student, which takes "
                f"{seconds} s; raise corpus.min_duration_s",
            )
        # Rounded even when it is not kept, so that the size of the cache does not change the training.
        features_TF = self._log_mel(waveform_T).half()
        size = features_TF.numel() * 2
        with self._lock:
            if size <= self._cache_bytes_left:
                self._cache_bytes_left -= size
                self._cache[key] = features_TF
        return features_TF.float()

    def _leave_out(self, error: UtteranceError) -> None:
        self.left_out[error.cut_id] = error.problem
        if len(self.left_out) > max(1, MAX_LEFT_OUT * self.num_rows):
            raise ValueError(
                f"{len(self.left_out)} of {self.num_rows} utterances of {self._table.location.url} cannot be "
                f"used, more than {MAX_LEFT_OUT:.0%}; the last one: {error}"
            ) from error
