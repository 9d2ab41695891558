"""Shards to a pool of Ray actors: exact attempts, replaced actors, quarantined shards.

A small dispatcher of our own and not ray.data or ActorPool: those retry a deadly shard for ever or abort the run
when one shard raises. An actor that dies costs its shard one attempt; a shard that used up its attempts is given
back with its errors and the others go on.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from mvqkd.pipeline.errors import PoolError

POLL_S = 0.5


@dataclass(kw_only=True)
class Outcome:
    """What became of one item: `result`, or `errors` of all attempts when `failed`."""

    item: Any
    attempts: int = 0
    result: Any = None
    errors: list[str] = field(default_factory=list)
    failed: bool = False


@dataclass(kw_only=True)
class _Busy:
    worker: Any
    outcome: Outcome
    since: float


def dispatch(
    items: Iterable[Any],
    spawn: Callable[[], Any],
    *,
    pool: int,
    max_attempts: int = 3,
    max_failed_starts: int = 3,
    timeout_s: float | None = None,
    on_poll: Callable[[list[Any]], None] | None = None,
    on_retry: Callable[[Outcome], None] | None = None,
) -> Iterator[Outcome]:
    """Run `worker.run(item, attempt=n)` for every item; yield one outcome each, as they come.

    Args:
        items: what to work on; each is given to one worker at a time.
        spawn: makes an actor handle. Its class must have `max_restarts=0`, so that attempts stay exact.
        pool: workers wanted. Surplus ones wait as pending actors, which is what an autoscaler sees as demand.
        max_attempts: tries for one item, whether it raised or took its worker down.
        max_failed_starts: workers in a row that may fail to start before all is given up.
        timeout_s: an item that takes longer has its worker killed.
        on_poll: called at least every half second with the busy workers.
        on_retry: called with an item that failed and will be tried again; its last error says why.

    Raises:
        PoolError: no worker can be started.
    """
    todo = deque(Outcome(item=item) for item in items)
    booting: dict[Any, Any] = {}
    busy: dict[Any, _Busy] = {}
    failed_starts = 0

    def feed(worker: Any) -> None:
        if not todo:
            ray.kill(worker)
            return
        outcome = todo.popleft()
        outcome.attempts += 1
        reference = worker.run.remote(outcome.item, attempt=outcome.attempts)
        busy[reference] = _Busy(worker=worker, outcome=outcome, since=time.monotonic())

    try:
        while todo or busy:
            while len(booting) + len(busy) < pool and len(booting) < len(todo):
                worker = spawn()
                booting[worker.__ray_ready__.remote()] = worker
            ready, _ = ray.wait([*booting, *busy], num_returns=1, timeout=POLL_S)
            for reference in ready:
                if reference in booting:
                    worker = booting.pop(reference)
                    try:
                        ray.get(reference)
                    except RayError as error:
                        failed_starts += 1
                        if failed_starts > max_failed_starts:
                            problem = (
                                f"{failed_starts} workers failed to start, the last one: {_cause(error)}"
                            )
                            raise PoolError(problem) from error
                    else:
                        failed_starts = 0
                        feed(worker)
                    continue
                work = busy.pop(reference)
                outcome = work.outcome
                # RayTaskError: the item raised and the actor lives. Any other RayError: the actor is lost.
                alive = True
                try:
                    outcome.result = ray.get(reference)
                except RayError as error:
                    outcome.errors.append(_cause(error))
                    alive = isinstance(error, RayTaskError)
                    if not alive:
                        ray.kill(work.worker)
                    if outcome.attempts < max_attempts:
                        todo.append(outcome)  # to the back: others go first
                        if on_retry is not None:
                            on_retry(outcome)
                    else:
                        outcome.failed = True
                        yield outcome
                else:
                    yield outcome
                if alive:
                    feed(work.worker)
            if timeout_s is not None:
                for work in busy.values():
                    if time.monotonic() - work.since > timeout_s:
                        ray.kill(work.worker)  # its reference fails at the next wait
            if on_poll is not None:
                on_poll([work.worker for work in busy.values()])
    finally:
        for worker in [*booting.values(), *(work.worker for work in busy.values())]:
            with contextlib.suppress(RayError):
                ray.kill(worker)


def _cause(error: RayError) -> str:
    """One line: the exception that the worker raised, or what Ray says of its loss."""
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, BaseException) else error
    lines = [line.strip() for line in str(shown).splitlines() if line.strip()] or [""]
    if "creation task" in lines[0]:
        # The actor's constructor raised: the traceback's last line says what.
        return lines[-1]
    # Ray puts a long report behind the first line of a lost actor's message.
    return f"{type(shown).__name__}: {lines[0]}"
