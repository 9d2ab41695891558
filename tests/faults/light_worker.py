"""A worker that commits as an `Extractor` does, but makes its codes of the plan's lines alone: without torch and Lhotse
its process is there in a second, and a fault costs a test little.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mischief import Mischief, is_committed

from mvqkd.storage.failures import write_failures
from mvqkd.storage.location import Location
from mvqkd.storage.rows import IndexRow
from mvqkd.storage.shard_summary import ShardSummary
from mvqkd.storage.shared_place import require_seen
from mvqkd.storage.table import IndexTable
from mvqkd.workers.line import Line
from mvqkd.workers.shard import Shard, read_shard


@dataclass(frozen=True, kw_only=True)
class LightReport:
    """As `ShardReport`."""

    tables: tuple[tuple[str, ShardSummary], ...]
    num_left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class LightSettings:
    """Of a worker that loads no teacher."""

    table: IndexTable
    plan: Location
    mischief: Mischief

    def build(self) -> "LightWorker":
        self.mischief.begin()
        require_seen(self.plan, "plan.json")
        return LightWorker(self)


class LightWorker:
    """Takes several shards at a time, one of which makes codes."""

    def __init__(self, settings: LightSettings) -> None:
        self._table, self._plan, self._mischief = settings.table, settings.plan, settings.mischief
        self._line = Line()

    def run(
        self, shard: Shard, *, last_attempt: bool = True, note: Callable[[dict[str, Any]], None]
    ) -> LightReport:
        table, name = self._table, shard.name(self._table.contract.digest())
        committed = is_committed(shard, table)
        found = table.find(name)
        if found is not None:
            return LightReport(tables=((name, found),))
        lines = read_shard(self._plan, shard)
        rows = []
        with self._line.place() as my_turn:
            my_turn()
            self._mischief.computes(shard, committed=committed)
            for line in lines:
                rows.append(_row(line, table.contract.num_codebooks))
                note(
                    {"position": shard.position, "hours": shard.hours * len(rows) / len(lines), "meters": {}}
                )
                self._mischief.strike(shard)
        write_failures(table.location, name, [])
        written = table.write_shard(name, rows)
        self._mischief.strike_after_put(shard)
        return LightReport(tables=((name, written.summary),))


def _row(line: str, num_codebooks: int) -> IndexRow:
    cut = json.loads(line)
    rng = np.random.default_rng(list(hashlib.sha256(line.encode()).digest()))
    num_frames = max(1, int(cut["duration"] * 50))
    return IndexRow(
        cut_id=cut["id"],
        recording_id=cut["recording"]["id"],
        channel=0,
        start=cut["start"],
        duration=cut["duration"],
        speed=1.0,
        num_samples=round(cut["duration"] * 16_000),
        num_frames=num_frames,
        rrl=0.5,
        speaker=None,
        text=None,
        codes=rng.integers(0, 16, (num_frames, num_codebooks), dtype=np.uint8),
        cut=line,
    )
