"""`python -m benchmarks.dispatch`: what handing out shards costs, with workers that only sleep.

The pool of `mvqkd extract` as it is (Ray, actors with three items in hand, notes, results) around a teacher that sleeps
for `--seconds`, one item at a time. The processes of all workers are on this machine, so the sleep has to be so long
that its CPUs are not the limit: 64 workers that sleep for a second are 64 items a second.

Measured from when all workers have begun to when the first one has nothing left: `dispatch_share` is the share of the
workers' time in which they did not sleep, `scaling` the items in a second beside those of the fewest workers, for each
worker.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mvqkd.pipeline.cluster.connect import cluster
from mvqkd.pipeline.cluster.dispatch import RayPool
from mvqkd.pipeline.cluster.pool import Note, Share, Watch
from mvqkd.pipeline.run_config import ClusterConfig

AT_ONCE = 3
CPUS_OF_RAY = 8
"""As many processes does Ray start at a time."""


@dataclass(frozen=True, kw_only=True)
class Slept:
    """When a worker slept, in seconds of this machine's clock."""

    worker: int
    began: float
    ended: float


@dataclass(frozen=True, kw_only=True)
class SleepSettings:
    """Of a worker that sleeps so long for each item."""

    seconds: float

    def build(self) -> "Sleeper":
        return Sleeper(self.seconds)


class Sleeper:
    """Takes several items at a time and sleeps for one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._teacher = threading.Lock()

    def run(self, item: int, *, last_attempt: bool, note: Callable[[Note], None]) -> Slept:
        with self._teacher:
            began = time.monotonic()
            time.sleep(self._seconds)
            ended = time.monotonic()
        note({"position": item, "hours": 1.0})
        return Slept(worker=os.getpid(), began=began, ended=ended)


def measure(workers: int, *, items: int, seconds: float) -> dict[str, Any]:
    """One pool of so many workers."""
    share = Share(workers=workers, cpus=0.01, gpus=0, keys="--workers", at_once=AT_ONCE)
    watch = Watch(on_notes=lambda _: None, on_retry=lambda outcome: None)
    before, cpu_before = time.monotonic(), time.process_time()
    pool = RayPool(ClusterConfig(num_cpus=CPUS_OF_RAY))
    slept: list[Slept] = []
    for outcome in pool.run(range(items), SleepSettings(seconds=seconds), share=share, watch=watch):
        assert not outcome.failed and outcome.attempts == 1
        slept.append(outcome.result)
    total_s, driver_s = time.monotonic() - before, time.process_time() - cpu_before
    by_worker: dict[int, list[Slept]] = {}
    for each in slept:
        by_worker.setdefault(each.worker, []).append(each)
    assert len(by_worker) == workers and len(slept) == items
    begin = max(min(x.began for x in of) for of in by_worker.values())
    end = min(max(x.ended for x in of) for of in by_worker.values())
    inside = sum(max(0.0, min(x.ended, end) - max(x.began, begin)) for x in slept)
    per_second = sum(begin < x.ended <= end for x in slept) / (end - begin)
    return {
        "workers": workers,
        "items": items,
        "seconds_each": seconds,
        "wall_s": end - begin,
        "with_start_s": total_s,
        "dispatch_share": 1 - inside / (workers * (end - begin)),
        "items_per_second": per_second,
        "driver_cpu_ms_per_item": 1000 * driver_s / items,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a worker sleeps for an item")
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on standard output")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with cluster(ClusterConfig(num_cpus=CPUS_OF_RAY)):
        for workers in arguments.workers:
            row = measure(workers, items=arguments.items, seconds=arguments.seconds)
            rows.append(row)
            first = rows[0]
            row["scaling"] = (row["items_per_second"] / workers) / (
                first["items_per_second"] / first["workers"]
            )
    print("| workers | items | s each | wall s | dispatch | items/s | scaling | driver CPU ms per item |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['workers']} | {row['items']} | {row['seconds_each']:g} | {row['wall_s']:.0f} | "
            f"{row['dispatch_share']:.2%} | {row['items_per_second']:.2f} | {row['scaling']:.1%} | "
            f"{row['driver_cpu_ms_per_item']:.1f} |"
        )
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
