"""How far an extraction is, from storage alone: the plan's totals, listings of the table and of its failures, and the
driver's last sign of life. No cluster is asked, so this works from anywhere and after the cluster is gone.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.heartbeat import PROGRESS, RATE_WINDOW_S
from mvqkd.storage.artifacts import read_json
from mvqkd.storage.errors import ArtifactError, ObjectMissingError
from mvqkd.workers.plan import read_plan

SHARD_SUFFIX, FAILURES = ".parquet", "_failures"  # as of `storage.table`, which imports pyarrow
BEATS_MISSED = 3
"""So many beats late, a driver is called silent."""
MOST_NAMED = 8


def run_status(run: Run, *, now: float | None = None) -> dict[str, Any]:
    """State, shards, hours, rate, and when it will end.

    Hours of shards that no sign of life told of are reckoned by the plan's mean. The rate is that of the last ten
    minutes: of the driver's own figures while it is heard, else of the times of the commits.

    Raises:
        StageError: nothing is planned.
        PlanError, ArtifactError: `plan.json` or `progress.json` is damaged.
    """
    now = time.time() if now is None else now
    plan = read_plan(run.plan("train"))
    if plan is None:
        raise StageError(f"{run.plan('train').full_url('plan.json')}: no plan; `mvqkd plan` makes it")
    planned, hours = len(plan.shards), plan.hours
    table = run.table
    beat = _read_beat(run, table.url)
    heard = beat is not None and beat.is_heard(now)
    # Of a driver that is heard, nobody has to ask the files; each of them is looked at for its time.
    entries = {} if heard else table.entries()
    written = {name: entries[f"{name}{SHARD_SUFFIX}"].modified for name in _shards(entries)}
    committed = set(_shards(table.names())) if heard else set(written)
    failed = sorted(set(_shards(table.names(FAILURES))) - committed)
    mean = hours / planned if planned else 0.0
    done = len(committed)
    # The driver knows the hours of the shards that it has seen; of those since, the mean is a good guess.
    told = (beat.hours_done + mean * (done - beat.shards_done)) if beat else mean * done
    hours_done = hours if done >= planned else min(told, hours)
    in_hand = beat.in_hand if beat is not None and heard else []
    # Shards that failed and whose driver runs may be in its hand again.
    left = max(0, planned - done - len(failed))
    hours_left = max(0.0, hours - hours_done - mean * len(failed) - sum(one["hours"] for one in in_hand))
    rate = beat.rate() if beat is not None and heard else None
    rate_of = "driver" if rate is not None else "commits"
    rate = _rate_of(written, mean, now) if rate is None else rate
    last_commit = beat.last_commit if beat is not None and heard else max(written.values(), default=None)
    seconds_left = hours_left / rate * 3600 if heard and rate and left else None
    return {
        "state": _state(beat, heard, left, done),
        "run": run.root.url,
        "shards": {
            "planned": planned,
            "done": done,
            "failed": len(failed),
            "in_hand": min(left, len(in_hand)),
            "waiting": max(0, left - len(in_hand)),
        },
        "hours": {"planned": hours, "done": hours_done, "left": hours_left if left else 0.0},
        "hours_per_hour": rate,
        "rate_from": rate_of,
        "seconds_left": seconds_left,
        "ends_at": now + seconds_left if seconds_left is not None else None,
        "last_commit_age_s": now - last_commit if last_commit is not None else None,
        "driver": beat.to_dict(now) if beat is not None else None,
        "workers": in_hand,
        "failed_shards": failed[:MOST_NAMED],
    }


@dataclass(frozen=True, kw_only=True)
class _Beat:
    """The driver's last sign of life, as `heartbeat` writes it."""

    content: Mapping[str, Any]

    @property
    def shards_done(self) -> int:
        return int(self.content["shards_done"])

    @property
    def hours_done(self) -> float:
        return float(self.content["hours_done"])

    @property
    def last_commit(self) -> float | None:
        """When the driver saw the last one."""
        return self.content["last_commit"]

    @property
    def in_hand(self) -> list[dict[str, Any]]:
        return list(self.content["in_hand"])

    def age_s(self, now: float) -> float:
        return max(0.0, now - self.content["time"])

    def is_heard(self, now: float) -> bool:
        """Whether the driver works, as far as one can tell."""
        return self.content["state"] == "working" and self.age_s(now) < BEATS_MISSED * self.content["every_s"]

    def rate(self) -> float | None:
        """Hours of audio per hour between its first and last figures; None while there is but one."""
        (first, before), (last, after) = self.content["samples"][0], self.content["samples"][-1]
        return (after - before) / (last - first) * 3600 if last > first else None

    def to_dict(self, now: float) -> dict[str, Any]:
        return {
            **{key: self.content[key] for key in ("state", "host", "process", "job")},
            "age_s": self.age_s(now),
            "began_s_ago": max(0.0, now - self.content["began"]),
        }


def _read_beat(run: Run, table: str) -> _Beat | None:
    where = run.root.full_url(PROGRESS)
    try:
        content = read_json(run.root, PROGRESS)
    except ObjectMissingError:
        return None
    try:
        beat = _Beat(content=content)
        if content["table"] != table:
            return None  # of the extraction into another table
        (
            beat.to_dict(0.0),
            beat.rate(),
            beat.is_heard(0.0),
            beat.hours_done,
            beat.shards_done,
            beat.last_commit,
        )
        return beat
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(f"{where}: not a sign of life of this version ({error!r}); delete it") from error


def _shards(names: Iterable[str]) -> list[str]:
    return [
        name.removesuffix(SHARD_SUFFIX)
        for name in names
        if name.endswith(SHARD_SUFFIX) and name[0] not in "._"
    ]


def _rate_of(commits: Mapping[str, float], mean: float, now: float) -> float | None:
    """Hours of audio per hour, by the commits of the last minutes; None when they are too few to tell."""
    times: Sequence[float] = sorted(when for when in commits.values() if now - when <= RATE_WINDOW_S)
    # From commit to commit: before the first one there may have been no driver.
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) * mean / (times[-1] - times[0]) * 3600


def _state(beat: _Beat | None, heard: bool, left: int, done: int) -> str:
    if heard:
        return "working"
    if not left:
        return "done"
    if beat is None:
        return "stopped" if done else "not begun"
    return "silent" if beat.content["state"] == "working" else "stopped"
