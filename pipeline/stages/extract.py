"""The extract stage: every planned shard that is not in the index tables yet."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mvqkd.pipeline.cluster.pool import Note, Outcome, Pool, Watch, open_pool
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import Bar, bar, say
from mvqkd.pipeline.stages.extract_table import TableWork, say_lost
from mvqkd.pipeline.stages.heartbeat import Heartbeat
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.workers.plan import Shard


def extract_stage(run: Run) -> dict[str, Any]:
    """Extract all shards that are not in the tables yet; the teacher runs once for all of them.

    Returns:
        Figures of the run's table; under `tables` those of further ones.

    Raises:
        StageError: there is no quantizer, or a table has shards of another plan.
        SharedPlaceError: this process does not see what its workers wrote.
    """
    plan = need_plan(run, "train")
    tables = [TableWork.begin(each, plan.shards) for each in (run, *run.more_tables())]
    missing = set().union(*(each.missing for each in tables))
    todo = [shard for shard in plan.shards if shard.position in missing]
    # What was given up before may well cost workers again: it comes when all else is done.
    set_aside = set().union(*(each.set_aside for each in tables))
    todo.sort(key=lambda shard: shard.position in set_aside)
    work = _Work(tables=[each for each in tables if each.missing], num_todo=len(todo), began=time.monotonic())
    if todo:
        first = tables[0]
        with (
            Heartbeat(
                root=run.root,
                table=first.table.location.url,
                plan=plan,
                todo=todo,
                shards_done=len(plan.shards) - len(todo),
                hours_done=first.extracted.total.total().duration_s / 3600,
            ) as work.beat,
            open_pool(run.config.cluster, run=run.name) as pool,
        ):
            for outcome in _outcomes(run, todo, pool, work):
                work.end(outcome)
    speed = work.speed()
    summaries = [each.end(speed=speed, worked=bool(todo)) for each in tables]
    if len(tables) == 1:
        return summaries[0]
    more = {
        str(each.run.table_name): summary for each, summary in zip(tables[1:], summaries[1:], strict=True)
    }
    failed = max(summary["shards_failed"] for summary in summaries)
    return {**summaries[0], "shards_failed": failed, "tables": more}


def _outcomes(run: Run, todo: Sequence[Shard], pool: Pool, work: "_Work") -> Iterator[Outcome]:
    from mvqkd.pipeline.stages.sizing import embedder_settings, extract_share
    from mvqkd.workers.extract import SHARDS_AT_ONCE, ExtractSettings, TableSettings

    share = extract_share(run, pool.resources)
    joined = run.config.cluster.address not in ("local", "none")
    if (
        joined
        and not share.gpus
        and run.config.extract.actors == "auto"
        and run.config.teacher.device != "cpu"
    ):
        # An autoscaler's cluster has no GPUs yet, and what `auto` counts is what is there now.
        say(
            f"no GPU is up at {run.config.cluster.address}: {share.workers} workers on CPUs are asked for; for a "
            "cluster that grows by demand set extract.actors and extract.gpus_per_actor"
        )
    share = replace(
        share,
        workers=min(share.workers, len(todo)),
        at_once=SHARDS_AT_ONCE,
        size=lambda shard: shard.hours,
    )
    settings = ExtractSettings(
        embedder=embedder_settings(run, share, work.tables[0].record),
        tables=tuple(TableSettings(table=each.table, quantizer=each.quantizer) for each in work.tables),
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

    tables: list[TableWork]
    num_todo: int
    began: float
    bar: Bar | None = None
    beat: Heartbeat | None = None
    hours: float = 0.0  # in the shards that were committed
    frames: int = 0
    num_left_out: int = 0
    _through: dict[int, float] = field(
        default_factory=dict
    )  # hours of the shards that are through, by position
    _begun: dict[int, float] = field(default_factory=dict)

    def end(self, outcome: Outcome) -> None:
        """Count what became of a shard; one that is lost is recorded."""
        shard = outcome.item
        self._through[shard.position] = shard.hours
        if outcome.failed:
            lost = [each.lost(outcome) for each in self.tables]
            if any(lost):
                say_lost(outcome, self.tables[0].name(shard))
        else:
            summaries = [summary for _, summary in outcome.result.tables]
            for each, summary in zip(self.tables, summaries, strict=True):
                each.committed(shard, summary)
            self.num_left_out += outcome.result.num_left_out
            self.hours += summaries[0].duration_s / 3600
            self.frames += summaries[0].frames
        if self.beat is not None:
            self.beat.through(shard.position, is_failed=outcome.failed)
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
        name = self.tables[0].name(failed.item)
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
