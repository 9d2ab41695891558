"""An endless sequence of batches out of index tables, in constant memory and the same on every resume.

The sequence follows from the tables, the seed and the position alone, not from how many processes share it. Shards are
shuffled in every epoch; rows are shuffled and batched by length inside windows of eight shards, so that a position in
the data is three numbers and going back to it reads the small columns of one window.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from mvqkd.workers.decode_ahead import length_sorted_batches
from mvqkd.workers.distill.rows import CHOOSING_COLUMNS, Choice, RowKey, Source, Use

WINDOW_SHARDS = 8
KEPT_ROWS = 200_000
"""Rows whose length stays in memory, so that a table of some hundred hours is not read again in every epoch."""


@dataclass(frozen=True, order=True)
class Position:
    """Of a batch in the sequence: epoch, window of the epoch, batch of the window."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A batch to come: its rows, seconds of audio without padding, its position and that of the batch after it."""

    keys: tuple[RowKey, ...]
    seconds: float
    at: Position
    after: Position


class BatchStream:
    """The batches of one use of rows, from a position on.

    Args:
        sources: the tables; the first is the run's own.
        choice: of each row's use.
        use: of the rows that are wanted.
        batch_seconds: upper bound of a padded batch.
        seed: of the order.

    Raises:
        ValueError: when iterated over, and no row is of that use.
    """

    def __init__(
        self, sources: Sequence[Source], choice: Choice, use: Use, *, batch_seconds: float, seed: int
    ) -> None:
        self._sources, self._choice, self._use = sources, choice, use
        self._batch_seconds, self._seed = batch_seconds, seed
        self._shards = [(number, name) for number, source in enumerate(sources) for name in source.shards]
        self._lengths: OrderedDict[tuple[int, str], list[tuple[RowKey, float]]] = OrderedDict()
        self._num_kept = 0

    def batches(self, start: Position = Position()) -> Iterator[Planned]:
        """The sequence from a position on; it has no end."""
        before: tuple[tuple[RowKey, ...], float, Position] | None = None
        # One behind: a batch is told the place of the next one, which may be in another window or epoch.
        for keys, seconds, at in self._all(start):
            if before is not None:
                yield Planned(keys=before[0], seconds=before[1], at=before[2], after=at)
            before = keys, seconds, at

    def _all(self, start: Position) -> Iterator[tuple[tuple[RowKey, ...], float, Position]]:
        for epoch in count(start.epoch):
            shards = list(self._shards)
            random.Random(f"{self._seed}/{epoch}").shuffle(shards)
            first_window = start.window if epoch == start.epoch else 0
            found = first_window > 0
            for window in range(first_window, -(-len(shards) // WINDOW_SHARDS)):
                here = Position(epoch, window)
                batches = self._window(shards[window * WINDOW_SHARDS :][:WINDOW_SHARDS], here)
                found = found or bool(batches)
                first = start.batch if here == Position(start.epoch, start.window) else 0
                for number, (keys, seconds) in enumerate(batches[first:], start=first):
                    yield keys, seconds, Position(epoch, window, number)
            if not found:
                raise ValueError(
                    f"{', '.join(source.table.location.url for source in self._sources)}: no row to train "
                    f"{'the codes' if self._use == 'codes' else 'the student'} on; see distill.untranscribed and "
                    "distill.transcribed_hours"
                )

    def _window(
        self, shards: Sequence[tuple[int, str]], at: Position
    ) -> list[tuple[tuple[RowKey, ...], float]]:
        rng = random.Random(f"{self._seed}/{at.epoch}/{at.window}")
        rows = [row for shard in shards for row in self._rows(*shard)]
        # Lengths are blurred, so that an utterance meets other neighbours in every epoch. Upwards only, so that a batch
        # stays within its bound.
        blurred = [seconds * rng.uniform(1.0, 1.2) for _, seconds in rows]
        batches = length_sorted_batches(rows, blurred, batch_seconds=self._batch_seconds)
        rng.shuffle(batches)
        return [(tuple(key for key, _ in batch), sum(seconds for _, seconds in batch)) for batch in batches]

    def _rows(self, number: int, name: str) -> list[tuple[RowKey, float]]:
        """Keys and seconds of the rows of a shard that are of this use."""
        place = number, name
        if place not in self._lengths:
            read = self._sources[number].table.read_shard(name, columns=CHOOSING_COLUMNS).to_pylist()
            self._lengths[place] = [
                (RowKey(number, name, place_in_shard), row["duration"])
                for place_in_shard, row in enumerate(read)
                if self._choice(row, own_table=number == 0) == self._use
            ]
            self._num_kept += len(self._lengths[place])
            while self._num_kept > KEPT_ROWS and len(self._lengths) > WINDOW_SHARDS:
                self._num_kept -= len(self._lengths.popitem(last=False)[1])
        return self._lengths[place]
