"""Making a shard plan: consecutive cuts up to a target of audio hours, in one pass over the corpus."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mvqkd.storage.errors import StorageError
from mvqkd.storage.location import Location
from mvqkd.workers.cuts import Planned, Refused, clipped, cut_to_json, planned
from mvqkd.workers.duplicates import CutIds
from mvqkd.workers.plan import (
    REFUSED,
    TEXT_DROPPED,
    Plan,
    PlanError,
    existing_plan,
    plan_settings,
    read_plan,
    read_shard_cuts,
    write_plan,
)
from mvqkd.workers.shard import Shard, digest_of, read_shard, write_shard
from mvqkd.workers.shards import ShardsWriter
from mvqkd.workers.spool import LinesSpool

if TYPE_CHECKING:
    from lhotse import MonoCut


def make_plan(
    cuts: Iterable["MonoCut | Planned | Refused"],
    location: Location,
    *,
    shard_hours: float,
    settings: dict[str, object],
    root: str | None = None,
    reuse: bool = True,
    progress: Callable[[int, float], None] | None = None,
) -> Plan:
    """Plan a corpus in one pass, in the memory of one shard, of 8 bytes for each cut and of some megabytes.

    Args:
        cuts: from `Corpus.planned`, or from `Corpus.cuts`.
        location: the plan's folder.
        shard_hours: a shard is closed before it would exceed this.
        settings: what the corpus was read with, from `CorpusConfig.plan_settings`.
        root: `Corpus.root`; audio under it is kept relative to it.
        reuse: return an existing plan of the same settings and root as it is; otherwise the corpus is read again,
            and an unchanged one gives the same plan, byte for byte.
        progress: called with cuts and hours so far after each shard.

    Raises:
        PlanError: cut ids repeat, no cut is usable, or the plan that is there and might be used is damaged.
    """
    if reuse and (existing := existing_plan(location, shard_hours=shard_hours, settings=settings, root=root)):
        return existing
    settings = plan_settings(settings, shard_hours)
    try:
        before = read_plan(location)
    except PlanError:
        before = None
    planner = _Planner(location, shard_hours=shard_hours, root=root, before=before, progress=progress)
    for cut in cuts:
        planner.add(cut)
    return planner.finish(settings)


class _Planner:
    """A plan in the making."""

    def __init__(
        self,
        location: Location,
        *,
        shard_hours: float,
        root: str | None,
        before: Plan | None,
        progress: Callable[[int, float], None] | None,
    ) -> None:
        self._location, self._root, self._before, self._progress = location, root, before, progress
        self._shard_s = shard_hours * 3600
        self._shards = ShardsWriter(location)
        self._lines: list[str] = []  # of the shard that is being filled
        self._seconds = 0.0
        self._ids = CutIds()
        self._refused, self._text_dropped = LinesSpool(location, REFUSED), LinesSpool(location, TEXT_DROPPED)
        self._reasons: list[str] = []

    def add(self, cut: "MonoCut | Planned | Refused") -> None:
        """The next cut."""
        if isinstance(cut, Refused):
            self._refused.add({key: value for key, value in asdict(cut).items() if value is not None})
            if self._refused.num_lines <= 3:
                self._reasons.append(f"{cut.cut_id} {cut.reason}")
            return
        cut_id, line, duration_s, problem = cut if isinstance(cut, Planned) else planned(cut, root=self._root)
        if problem is not None:
            self._text_dropped.add({"cut_id": cut_id, "reason": problem})
        if self._lines and self._seconds + duration_s > self._shard_s:
            self._close()
        self._lines.append(line)
        self._seconds += duration_s
        self._ids.add(cut_id)

    def finish(self, settings: dict[str, object]) -> Plan:
        """Write what is left, `plan.json` last."""
        if self._lines:
            self._close()
        if not self._shards:
            reasons = "; ".join(self._reasons)
            raise PlanError(
                f"no utterance of the corpus can be used: {self._refused.num_lines} refused: {reasons}"
            )
        shards = self._shards.finish()
        self._refuse_repeated_ids(shards)
        self._refused.write()
        self._text_dropped.write()
        plan = Plan(
            location=self._location,
            shards=shards,
            num_cuts=len(self._ids),
            hours=self._shards.hours,
            num_refused=self._refused.num_lines,
            num_text_dropped=self._text_dropped.num_lines,
            settings=settings,
            root=self._root,
        )
        write_plan(plan)
        return plan

    def _close(self) -> None:
        number = len(self._shards)
        known = self._known(number)
        shard = write_shard(self._location, number, self._lines, self._seconds / 3600, known=known)
        self._shards.add(shard)
        self._lines, self._seconds = [], 0.0
        if self._progress:
            self._progress(len(self._ids), self._shards.hours)

    def _known(self, number: int) -> str | None:
        """The digest that names the shard, where the plan before has the same cuts at its position."""
        if self._before is None or number >= len(self._before.shards):
            return None
        shard = self._before.shards[number]
        if shard.num_cuts != len(self._lines):
            return None
        if shard.content == digest_of(self._lines):
            return shard.digest
        if self._before.version == 1 and self._same_as_before(shard):
            return shard.digest
        return None

    def _same_as_before(self, shard: Shard) -> bool:
        """Version 1 kept full paths, and cuts that reach beyond their recording by less than a frame."""
        try:
            then = [clipped(cut) for cut in read_shard_cuts(self._location, shard)]
        except (StorageError, PlanError):
            return False
        # A relative root of then is known only to who stands in the folder where it was written.
        roots = {self._before.root if self._before else None, self._root}
        return any([cut_to_json(cut, root=root) for cut in then] == self._lines for root in roots)

    def _refuse_repeated_ids(self, shards: Sequence[Shard]) -> None:
        def read(number: int) -> list[Any]:
            return [json.loads(line) for line in read_shard(self._location, shards[number])]

        problem = self._ids.problem(self._shards.num_cuts, read)
        if problem is not None:
            raise PlanError(problem)
