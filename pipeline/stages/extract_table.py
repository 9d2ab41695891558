"""One table of an extraction: its quantizer, what is there, and what comes in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mvqkd.pipeline.cluster.pool import Outcome
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import say
from mvqkd.pipeline.stages.describe import check_settings
from mvqkd.pipeline.stages.extracted import Extracted
from mvqkd.storage.contract import EMBEDDINGS
from mvqkd.storage.errors import ArtifactError
from mvqkd.storage.failures import Failure, shards_with_failures, write_failures
from mvqkd.storage.location import Location
from mvqkd.storage.shard_summary import ShardSummary
from mvqkd.storage.shared_place import require_seen
from mvqkd.storage.table import IndexTable, shard_names
from mvqkd.workers.plan import Shard
from mvqkd.workers.quantizer_record import QuantizerRecord, load_record
from mvqkd.workers.teacher_record import TeacherRecord, load_teacher_record

MOST_SHARD_BYTES = 4 * 10**9
"""Of embeddings, before compression: a shard is put by one request, which takes 5 GiB, and is in memory as a whole."""


@dataclass(kw_only=True)
class TableWork:
    """A table that is being extracted.

    Attributes:
        run: whose table it is.
        record: of its quantizer; of its teacher where it holds embeddings.
        table: itself.
        extracted: what of it is counted.
        found: names of the shards that were there at the beginning.
        missing: positions of those that were not.
        set_aside: positions of those among them that an earlier command gave up.
        sizes: the listing that says so.
        num_shards, num_failed: that came since, or did not.
    """

    run: Run
    record: QuantizerRecord | TeacherRecord
    table: IndexTable
    extracted: Extracted
    found: set[str]
    missing: set[int]
    set_aside: set[int]
    sizes: dict[str, int]
    num_shards: int = 0
    num_failed: int = 0

    @classmethod
    def begin(cls, run: Run, shards: Sequence[Shard]) -> "TableWork":
        """Look at what is there.

        Raises:
            StageError: there is no quantizer, the table has shards of another plan, or shards are too large for it.
        """
        record = _need_teacher(run, shards) if _is_of_embeddings(run) else _need_quantizer(run)
        table = IndexTable.create(run.table, record.contract(search=run.config.extract.search))
        digest = table.contract.digest()
        planned = {shard.name(digest): shard.position for shard in shards}
        sizes = table.location.list()
        found = set(shard_names(sizes))
        _refuse_foreign(table, sorted(found - set(planned)))
        failed = shards_with_failures(table.location) - found if len(found) < len(planned) else set()
        return cls(
            run=run,
            record=record,
            table=table,
            extracted=Extracted.load(run, table, sizes),
            found=found,
            missing={position for name, position in planned.items() if name not in found},
            set_aside={planned[name] for name in failed if name in planned},
            sizes=sizes,
        )

    @property
    def quantizer(self) -> Location | None:
        """Folder of its quantizer; None where it holds embeddings."""
        return None if _is_of_embeddings(self.run) else self.run.quantizer

    def name(self, shard: Shard) -> str:
        """The shard's name in this table."""
        return shard.name(self.table.contract.digest())

    def committed(self, shard: Shard, summary: ShardSummary) -> None:
        """A worker says that it has committed a shard."""
        name = self.name(shard)
        require_seen(self.table.location, self.table.shard_path(name))
        self.extracted.add(name, summary)
        self.num_shards += 1

    def lost(self, outcome: Outcome) -> bool:
        """A shard used up its attempts: record it, unless an actor that was lost after its PUT had done its work."""
        name = self.name(outcome.item)
        if self.table.is_committed(name):
            return False
        self.num_failed += 1
        kind, _, message = outcome.errors[-1].partition(": ")
        failure = Failure(
            shard=name, cut_id=None, stage="shard", error=kind, message=message, attempts=outcome.attempts
        )
        write_failures(self.table.location, name, [failure])
        return True

    def end(self, *, speed: dict[str, float], worked: bool) -> dict[str, Any]:
        """Count what others put there too, keep the sums, report.

        Args:
            speed: of this extraction; where nothing was done, that of the last one is kept.
            worked: whether anything may have changed since the beginning.
        """
        if worked:
            self.sizes = self.table.location.list()
            self.extracted.look_again(self.sizes)
        self.extracted.save(self.run)
        summary = {
            "table_url": self.run.table.url,
            "shards_extracted": self.num_shards,
            "shards_found_done": len(self.found),
            "shards_failed": self.num_failed,
            "utterances_left_out": self.extracted.num_left_out,
            "speed": speed or self.run.reports.whole().get("extract", {}).get("speed", {}),
            "table": self._figures(),
        }
        self.run.reports.write("extract", summary)
        return summary

    def _figures(self) -> dict[str, Any]:
        figures = self.extracted.table_summary(self.sizes, embedding_dim=self.record.dim).to_dict()
        if figures["bytes_per_hour"]:
            for dtype in ("float32", "float16"):
                times = figures[f"{dtype}_bytes_per_hour"] / figures["bytes_per_hour"]
                figures[f"{dtype}_times_as_much"] = times
        return figures


def _need_quantizer(run: Run) -> QuantizerRecord:
    try:
        record = load_record(run.quantizer)
    except ArtifactError as error:
        raise StageError(f"{error}; `mvqkd fit` makes it") from error
    layer = record.teacher["layer"]
    if run.config.teacher.layer not in (None, layer):
        raise StageError(
            f"{run.quantizer.url}: this quantizer was fitted on layer {layer} of the teacher, but teacher.layer is "
            f"{run.config.teacher.layer}; set it back, or use another storage.root"
        )
    return record


def _is_of_embeddings(run: Run) -> bool:
    return run.config.table.target == EMBEDDINGS


def _need_teacher(run: Run, shards: Sequence[Shard]) -> TeacherRecord:
    try:
        record = load_teacher_record(run.teacher)
    except ArtifactError as error:
        raise StageError(f"{error}; `mvqkd fit` makes it") from error
    check_settings(run, record)
    contract = record.contract(search=run.config.extract.search)
    hours = max((shard.hours for shard in shards), default=0.0)
    size = hours * 3600 * contract.frame_rate_hz * contract.bytes_per_frame
    if size > MOST_SHARD_BYTES:
        at_most = 0.99 * hours * MOST_SHARD_BYTES / size
        raise StageError(
            f"a shard of {hours:.2f} h has {size / 1e9:.1f} GB of embeddings, more than {MOST_SHARD_BYTES / 1e9:g} GB; "
            f"set extract.shard_hours to {at_most:.2g} or less, and plan again"
        )
    return record


def _refuse_foreign(table: IndexTable, names: Sequence[str]) -> None:
    """Shards that the plan does not know hold utterances that other shards hold too."""
    if names:
        raise StageError(
            f"{table.location.url}: {len(names)} shards are not of this plan, such as "
            f"{table.shard_path(names[0])}: the corpus or extract.shard_hours changed since; delete these "
            f"{len(names)} files, or choose another table.path"
        )


def say_lost(outcome: Outcome, name: str) -> None:
    """Tell that a shard is set aside."""
    say(f"{name} failed {outcome.attempts} times and is set aside: {outcome.errors[-1]}")
