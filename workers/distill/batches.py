"""Batches of examples from an index table, the same on every resume.

The batches of an epoch follow from the table, the seed and the epoch alone, so a position in the data is two
numbers, and going back to it reads nothing but lengths.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.storage.rows import arrow_to_rows
from mvqkd.storage.table import IndexTable
from mvqkd.storage.threads import READING_THREADS, map_in_order
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import decoded_batches, length_sorted_batches
from mvqkd.workers.distill.examples import Batch, Example, ExampleMaker, RowKey

WINDOW_SHARDS = 8
MAX_LEFT_OUT = 0.05

Durations = dict[str, list[float | None]]


def scan_table(table: IndexTable) -> tuple[Durations, list[str]]:
    """What a training has to know of a table before its first step, in one reading of two columns.

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
    results = map_in_order(read, names, threads=READING_THREADS)
    for name, (durations, texts) in zip(names, results, strict=True):
        all_durations[name] = durations
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
        make: an example of a row.
        specs: of the targets, by the name of their head.
        batch_seconds: upper bound of a padded batch.
        seed: of the order.
        decode_threads: threads that decode ahead.
        rank, world_size: this process among all.

    Raises:
        ValueError: there are fewer batches than ranks.
    """

    def __init__(
        self,
        table: IndexTable,
        durations: Durations,
        make: ExampleMaker,
        *,
        specs: Mapping[str, TargetSpec],
        batch_seconds: float,
        seed: int,
        decode_threads: int = 2,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._table, self._durations, self._make, self.specs = table, durations, make, dict(specs)
        self._batch_seconds, self._seed, self._threads = batch_seconds, seed, decode_threads
        self._rank, self._world_size = rank, world_size
        self._shards: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self.left_out: dict[str, str] = {}
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
        for results in decoded_batches(self._with_rows(plan), self._make, threads=self._threads):
            good: list[Example] = []
            for result in results:
                if isinstance(result, UtteranceError):
                    self._leave_out(result)
                else:
                    good.append(result)
            yield Batch(examples=tuple(good), specs=self.specs)

    def _with_rows(self, plan: Sequence[Sequence[RowKey]]) -> Iterator[list[tuple[RowKey, dict[str, Any]]]]:
        for batch in plan:
            yield [((name, row), self._rows(name)[row]) for name, row in batch]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if name not in self._shards:
            self._shards[name] = list(arrow_to_rows(self._table.read_shard(name, columns=self._make.columns)))
            while len(self._shards) > WINDOW_SHARDS + 1:
                self._shards.popitem(last=False)
        return self._shards[name]

    def _leave_out(self, error: UtteranceError) -> None:
        self.left_out[error.cut_id] = error.problem
        if len(self.left_out) > max(1, MAX_LEFT_OUT * self.num_rows):
            raise ValueError(
                f"{len(self.left_out)} of {self.num_rows} utterances of {self._table.location.url} cannot be "
                f"used, more than {MAX_LEFT_OUT:.0%}; the last one: {error}"
            ) from error
