"""What a table holds, added up as its shards are extracted, so that no later run has to read the table for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import say
from mvqkd.storage.artifacts import read_json, write_json
from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.failures import FAILURES_FOLDER, read_failures
from mvqkd.storage.shard_summary import ShardSummary, SummaryTotal
from mvqkd.storage.summary import TableSummary, summarize
from mvqkd.storage.table import IndexTable, shard_names
from mvqkd.storage.threads import READING_THREADS, map_in_order

STATE = "extracted.json"


@dataclass(kw_only=True)
class Extracted:
    """The shards that are counted, and their sum; kept in `extracted.json` beside the run's report.

    Attributes:
        table: whose shards.
        total: their sum.
        shards: names of those counted.
        failures: sizes of the objects of the failures table.
        num_failures: records in them; `num_left_out`: those of single utterances.
    """

    table: IndexTable
    total: SummaryTotal
    shards: set[str] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)
    num_failures: int = 0
    num_left_out: int = 0

    @classmethod
    def load(cls, run: Run, table: IndexTable, sizes: Mapping[str, int]) -> "Extracted":
        """What an earlier run counted, if all of it is still there; the footers of other shards are read.

        Args:
            sizes: listing of the table's folder.
        """
        try:
            found = cls._kept(run, table)
        except (KeyError, TypeError, ValueError) as error:
            # What it says can be found again, so it stops nobody.
            say(f"{run.reports.root.full_url(STATE)}: damaged ({error}); the table is counted anew")
            found = None
        if found is not None and found.shards <= set(shard_names(sizes)):
            found.read_footers(sizes)
            return found
        found = cls(table=table, total=SummaryTotal(table.contract))
        if sizes:
            found.look_again(sizes)
        return found

    @classmethod
    def _kept(cls, run: Run, table: IndexTable) -> "Extracted | None":
        """What `save` kept, if it is of this table."""
        try:
            state: dict[str, Any] = read_json(run.reports.root, STATE)
        except ObjectMissingError:
            return None
        if (state["table"], state["contract"]) != (table.location.url, table.contract.digest()):
            return None
        total = SummaryTotal(table.contract)
        total.add(ShardSummary.from_dict(state["total"], where=run.reports.root.full_url(STATE)))
        return cls(
            table=table,
            total=total,
            shards=set(state["shards"]),
            failures=dict(state["failures"]),
            num_failures=int(state["num_failures"]),
            num_left_out=int(state["num_left_out"]),
        )

    def save(self, run: Run) -> None:
        """Keep it for the next run."""
        state = {
            "table": self.table.location.url,
            "contract": self.table.contract.digest(),
            "shards": sorted(self.shards),
            "total": self.total.total().to_dict(),
            "failures": self.failures,
            "num_failures": self.num_failures,
            "num_left_out": self.num_left_out,
        }
        write_json(run.reports.root, STATE, state)

    def add(self, name: str, summary: ShardSummary) -> None:
        """Count a shard, once."""
        if name not in self.shards:
            self.shards.add(name)
            self.total.add(summary)

    def look_again(self, sizes: Mapping[str, int]) -> None:
        """Count what others put there: the footers of shards that are not counted, and the failures table."""
        self.read_footers(sizes)
        failures = read_failures(self.table.location)
        self.failures = dict(self.table.location.list(FAILURES_FOLDER))
        self.num_failures = len(failures)
        self.num_left_out = sum(failure.cut_id is not None for failure in failures)

    def read_footers(self, sizes: Mapping[str, int]) -> None:
        """Count the shards of a listing that are not counted yet."""
        missing = [name for name in shard_names(sizes) if name not in self.shards]
        found = map_in_order(self.table.summary_of, missing, threads=READING_THREADS)
        for name, summary in zip(missing, found, strict=True):
            self.add(name, summary)

    def table_summary(self, sizes: Mapping[str, int], *, embedding_dim: int) -> TableSummary:
        """Figures of the whole table, whose folder has been listed."""
        failures = {f"{FAILURES_FOLDER}/{name}": size for name, size in self.failures.items()}
        return summarize(
            self.table,
            self.total.total(),
            sizes={**sizes, **failures},
            num_failures=self.num_failures,
            embedding_dim=embedding_dim,
        )
