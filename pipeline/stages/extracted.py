"""What a table holds, added up as its shards are extracted, so that no later run has to read the table for it."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mvqkd.pipeline.run_folder import Run
from mvqkd.storage.artifacts import read_json, write_json
from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.failures import FAILURES_FOLDER, read_failures
from mvqkd.storage.summary import ShardSummary, TableSummary, summarize
from mvqkd.storage.table import IndexTable

STATE = "extracted.json"
READERS = 16


@dataclass(kw_only=True)
class Extracted:
    """The shards that are counted, and their sum; kept in `extracted.json` beside the run's report.

    Attributes:
        table: whose shards.
        shards: names of those counted.
        total: their sum; None before the first.
        failures: records in the failures table, and `left_out`: those of single utterances.
    """

    table: IndexTable
    shards: set[str] = field(default_factory=set)
    total: ShardSummary | None = None
    failures: int = 0
    left_out: int = 0
    failures_bytes: int = 0

    @classmethod
    def load(cls, run: Run, table: IndexTable, committed: set[str]) -> "Extracted":
        """What an earlier run counted, if all of it is still there; the footers of other shards are read."""
        try:
            state: dict[str, Any] = read_json(run.root, STATE)
        except ObjectMissingError:
            state = {}
        same = state.get("table") == table.location.url and state.get("contract") == table.contract.digest()
        counted = set(state["shards"]) if same else set()
        if not counted or counted - committed:
            found = cls(table=table)
            found.look_at_failures()
        else:
            found = cls(
                table=table,
                shards=counted,
                total=ShardSummary.from_dict(state["total"]),
                failures=state["failures"],
                left_out=state["left_out"],
                failures_bytes=state["failures_bytes"],
            )
        found.read(committed)
        return found

    def save(self, run: Run) -> None:
        """Keep it for the next run."""
        if self.total is None:
            return
        state = {
            "table": self.table.location.url,
            "contract": self.table.contract.digest(),
            "shards": sorted(self.shards),
            "total": self.total.to_dict(),
            "failures": self.failures,
            "left_out": self.left_out,
            "failures_bytes": self.failures_bytes,
        }
        write_json(run.root, STATE, state)

    def add(self, name: str, summary: ShardSummary) -> None:
        """Count a shard, once."""
        if name not in self.shards:
            self.shards.add(name)
            self.total = summary if self.total is None else self.total + summary

    def read(self, committed: Iterable[str]) -> None:
        """Count the shards that are not counted yet, by their footers."""
        missing = sorted(set(committed) - self.shards)
        with ThreadPoolExecutor(READERS) as pool:
            for name, summary in zip(missing, pool.map(self.table.summary_of, missing), strict=True):
                self.add(name, summary)

    def look_at_failures(self) -> None:
        """Count the records of the failures table anew."""
        failures = read_failures(self.table.location)
        self.failures = len(failures)
        self.left_out = sum(failure.cut_id is not None for failure in failures)
        self.failures_bytes = sum(self.table.location.join(FAILURES_FOLDER).list().values())

    def table_summary(self, sizes: Mapping[str, int], *, embedding_dim: int) -> TableSummary:
        """Figures of the whole table, whose folder has been listed."""
        total = self.total or ShardSummary.empty(self.table.contract)
        return summarize(
            self.table,
            total,
            num_shards=len(self.shards),
            total_bytes=sum(sizes.values()) + self.failures_bytes,
            num_failures=self.failures,
            embedding_dim=embedding_dim,
        )
