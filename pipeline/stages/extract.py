"""The extract stage: every planned shard that is not in the index table yet."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mvqkd.pipeline.cluster.pool import Note, Outcome, Pool, Watch, open_pool
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import Bar, bar, say
from mvqkd.pipeline.stages.extracted import Extracted
from mvqkd.pipeline.stages.heartbeat import Heartbeat
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.errors import ArtifactError
from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.shared_place import require_seen
from mvqkd.storage.table import IndexTable, shard_names
from mvqkd.workers.plan import Shard
from mvqkd.workers.quantizer_record import QuantizerRecord, load_record


def extract_stage(run: Run) -> dict[str, Any]:
    """Extract all shards that are not in the table yet.

    Raises:
        StageError: there is no quantizer, or the table has shards of another plan.
        SharedPlaceError: this process does not see what its workers wrote.
    """
    plan = need_plan(run, "train")
    record = _need_quantizer(run)
    table = IndexTable.create(run.table, record.contract(search=run.config.extract.search))
    planned = {shard.name(table.contract.digest()): shard for shard in plan.shards}
    sizes = table.location.list()
    committed = set(shard_names(sizes))
    _refuse_foreign(table, sorted(committed - set(planned)))
    extracted = Extracted.load(run, table, sizes)
    todo = [shard for name, shard in planned.items() if name not in committed]
    work = _Work(table=table, extracted=extracted, num_todo=len(todo), began=time.monotonic())
    if todo:
        with (
            Heartbeat(
                root=run.root,
                table=table.location.url,
                plan=plan,
                todo=todo,
                shards_done=len(committed),
                hours_done=extracted.total.total().duration_s / 3600,
            ) as work.beat,
            open_pool(run.config.cluster, run=run.name) as pool,
        ):
            for outcome in _outcomes(run, table, todo, pool, work):
                work.end(outcome)
        sizes = table.location.list()
        extracted.look_again(sizes)
    extracted.save(run)
    summary = {
        "table_url": run.table.url,
        "shards_extracted": work.num_shards,
        "shards_found_done": len(committed),
        "shards_failed": work.num_failed,
        "utterances_left_out": extracted.num_left_out,
        "speed": work.speed() or run.reports.whole().get("extract", {}).get("speed", {}),
        "table": _table_figures(extracted, sizes, record),
    }
    run.reports.write("extract", summary)
    return summary


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


def _refuse_foreign(table: IndexTable, names: Sequence[str]) -> None:
    """Shards that the plan does not know hold utterances that other shards hold too."""
    if names:
        raise StageError(
            f"{table.location.url}: {len(names)} shards are not of this plan, such as "
            f"{table.shard_path(names[0])}: the corpus or extract.shard_hours changed since; delete these "
            f"{len(names)} files, or choose another table.path"
        )


def _outcomes(
    run: Run, table: IndexTable, todo: Sequence[Shard], pool: Pool, work: "_Work"
) -> Iterator[Outcome]:
    from mvqkd.pipeline.stages.sizing import embedder_settings, extract_share
    from mvqkd.workers.extract import SHARDS_AT_ONCE, ExtractSettings, TableSettings

    share = extract_share(run, pool.resources)
    share = replace(
        share,
        workers=min(share.workers, len(todo)),
        at_once=SHARDS_AT_ONCE,
        size=lambda shard: shard.hours,
    )
    settings = ExtractSettings(
        embedder=embedder_settings(run, share),
        tables=(TableSettings(table=table, quantizer=run.quantizer),),
        plan=run.plan("train"),
        max_unreadable=run.config.extract.max_unreadable,
    )
    work.began = time.monotonic()
    with bar("extract", total=sum(shard.hours for shard in todo), unit="h") as work.bar:
        yield from pool.run(
            todo,
            settings,
            share=share,
            max_attempts=run.config.extract.max_attempts,
            timeout_s=run.config.extract.shard_timeout_s,
            watch=Watch(on_notes=work.show, on_retry=work.say_again),
        )


@dataclass(kw_only=True)
class _Work:
    """What has been done since the extraction began."""

    table: IndexTable
    extracted: Extracted
    num_todo: int
    began: float
    bar: Bar | None = None
    beat: Heartbeat | None = None
    hours: float = 0.0  # in the shards that were committed
    frames: int = 0
    num_shards: int = 0
    num_failed: int = 0
    num_left_out: int = 0
    _through: dict[int, float] = field(
        default_factory=dict
    )  # hours of the shards that are through, by position
    _begun: dict[int, float] = field(default_factory=dict)

    def end(self, outcome: Outcome) -> None:
        """Count what became of a shard; one that is lost is recorded."""
        name = outcome.item.name(self.table.contract.digest())
        self._through[outcome.item.position] = outcome.item.hours
        if not outcome.failed:
            report = outcome.result
            require_seen(self.table.location, self.table.shard_path(name))
            ((_, summary),) = report.tables
            self.extracted.add(name, summary)
            self.num_shards += 1
            self.num_left_out += report.num_left_out
            self.hours += summary.duration_s / 3600
            self.frames += summary.frames
        # An actor that was lost after its PUT has done its work.
        elif not self.table.is_committed(name):
            self.num_failed += 1
            _record_failed_shard(self.table, name, outcome)
        if self.beat is not None:
            self.beat.through(outcome.item.position, is_failed=outcome.failed)
        self.show([])

    def show(self, notes: list[Note]) -> None:
        """Move the bar; notes are of shards in hand."""
        self._begun |= {note["position"]: note["hours"] for note in notes}
        if self.beat is not None and notes:
            self.beat.take(notes)
        hours = sum((self._begun | self._through).values())
        assert self.bar is not None, "shown while the pool works"
        self.bar.update(
            hours,
            shards=f"{len(self._through)}/{self.num_todo}",
            times_real_time=hours * 3600 / max(1e-9, time.monotonic() - self.began),
            left_out=self.num_left_out,
        )

    def say_again(self, failed: Outcome) -> None:
        """Tell that a shard will be tried again."""
        name = failed.item.name(self.table.contract.digest())
        say(f"{name} failed and is tried again: {failed.errors[-1]}")

    def speed(self) -> dict[str, float]:
        """How fast it went; nothing when nothing was extracted."""
        seconds = time.monotonic() - self.began
        if not self.hours:
            return {}
        return {
            "extracted_hours": self.hours,
            "seconds": seconds,
            "real_time_factor": seconds / (self.hours * 3600),
            "times_real_time": self.hours * 3600 / seconds,
            "frames_per_second": self.frames / seconds,
        }


def _record_failed_shard(table: IndexTable, name: str, outcome: Outcome) -> None:
    kind, _, message = outcome.errors[-1].partition(": ")
    failure = Failure(
        shard=name, cut_id=None, stage="shard", error=kind, message=message, attempts=outcome.attempts
    )
    write_failures(table.location, name, [failure])
    say(f"{name} failed {outcome.attempts} times and is set aside: {outcome.errors[-1]}")


def _table_figures(extracted: Extracted, sizes: dict[str, int], record: QuantizerRecord) -> dict[str, Any]:
    figures = extracted.table_summary(sizes, embedding_dim=record.dim).to_dict()
    if figures["bytes_per_hour"]:
        for dtype in ("float32", "float16"):
            figures[f"{dtype}_times_as_much"] = figures[f"{dtype}_bytes_per_hour"] / figures["bytes_per_hour"]
    return figures
