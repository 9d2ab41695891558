"""The pool of Ray actors: exact attempts, replaced actors, quarantined items.

A small dispatcher of our own and not ray.data or ActorPool: those retry a deadly shard for ever or abort the run
when one shard raises. An actor that dies costs its shard one attempt; a shard that used up its attempts is given
back with its errors and the others go on.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from mvqkd.pipeline.cluster.actors import actor_of
from mvqkd.pipeline.cluster.connect import check_fits, read_board, resources, start_board
from mvqkd.pipeline.cluster.metrics import DriverMetrics, Labels
from mvqkd.pipeline.cluster.pool import Note, Outcome, Resources, Share, Watch, WorkerSettings
from mvqkd.pipeline.errors import PoolError
from mvqkd.pipeline.run_config import ClusterConfig

if TYPE_CHECKING:
    from mvqkd.workers.distill.job import TrainJob

POLL_S = 0.5


class RayPool:
    """Actors on the cluster that this process is connected to; `run` is what the metrics call this run."""

    def __init__(self, config: ClusterConfig, *, run: str = "") -> None:
        self._config, self._run = config, run

    @property
    def resources(self) -> Resources:
        """What the cluster has at this moment."""
        return resources()

    def run(
        self,
        items: Iterable[Any],
        settings: WorkerSettings,
        *,
        share: Share,
        watch: Watch,
        max_attempts: int = 3,
        timeout_s: float | None = None,
    ) -> Iterator[Outcome]:
        """As `Pool.run`. An attempt that takes longer than `timeout_s` has its actor killed."""
        check_fits(self._config, share)
        board, items = start_board(), list(items)
        metrics = DriverMetrics(Labels.of(settings, self._run), left=len(items))
        actor = actor_of(settings, cpus=share.cpus, gpus=share.gpus)

        def look() -> None:
            watch.on_notes(list(read_board(board).values()))

        def again(outcome: Outcome) -> None:
            metrics.retried()
            watch.on_retry(outcome)

        dispatcher = Dispatcher(
            spawn=lambda: actor.remote(settings, board, self._run),
            workers=share.workers,
            max_attempts=max_attempts,
            timeout_s=timeout_s,
            on_poll=look,
            on_retry=again,
        )
        for outcome in dispatcher.run(items):
            metrics.ended(failed=outcome.failed)
            look()
            yield outcome

    def train(self, job: "TrainJob", *, use_gpu: bool, note: Callable[[Note], None]) -> None:
        """As `Pool.train`, by Ray Train."""
        from mvqkd.pipeline.cluster.train_job import train_on_cluster

        train_on_cluster(job, use_gpu=use_gpu, note=note)


@dataclass(kw_only=True)
class _Busy:
    worker: Any
    outcome: Outcome
    since: float


@dataclass(kw_only=True)
class Dispatcher:
    """Runs `worker.run(item, last_attempt=...)` for every item on a set of actors.

    Args:
        spawn: makes an actor handle. Its class must have `max_restarts=0`, so that attempts stay exact.
        workers: actors wanted. Surplus ones wait as pending actors, which is what an autoscaler sees as demand.
        max_attempts: tries for one item, whether it raised or took its actor down.
        max_failed_starts: actors in a row that may fail to start before all is given up.
        timeout_s: an item that takes longer has its actor killed.
        on_poll: called at least every half second.
        on_retry: called with an item that failed and will be tried again; its last error says why.
    """

    spawn: Callable[[], Any]
    workers: int
    max_attempts: int = 3
    max_failed_starts: int = 3
    timeout_s: float | None = None
    on_poll: Callable[[], None] = lambda: None
    on_retry: Callable[[Outcome], None] = lambda outcome: None
    _todo: deque[Outcome] = field(default_factory=deque, init=False)
    _booting: dict[Any, Any] = field(default_factory=dict, init=False)
    _busy: dict[Any, _Busy] = field(default_factory=dict, init=False)
    _failed_starts: int = field(default=0, init=False)

    def run(self, items: Iterable[Any]) -> Iterator[Outcome]:
        """One outcome for every item, as they come.

        Raises:
            PoolError: no actor can be started.
        """
        self._todo.extend(Outcome(item=item) for item in items)
        try:
            while self._todo or self._busy:
                while len(self._booting) + len(self._busy) < self.workers and len(self._booting) < len(
                    self._todo
                ):
                    worker = self.spawn()
                    self._booting[worker.__ray_ready__.remote()] = worker
                ready, _ = ray.wait([*self._booting, *self._busy], num_returns=1, timeout=POLL_S)
                for reference in ready:
                    if reference in self._booting:
                        self._started(reference)
                    elif (outcome := self._ended(reference)) is not None:
                        yield outcome
                self._end_late_ones()
                self.on_poll()
        finally:
            for worker in [*self._booting.values(), *(work.worker for work in self._busy.values())]:
                with contextlib.suppress(RayError):
                    ray.kill(worker)

    def _feed(self, worker: Any) -> None:
        if not self._todo:
            ray.kill(worker)
            return
        outcome = self._todo.popleft()
        outcome.attempts += 1
        reference = worker.run.remote(outcome.item, last_attempt=outcome.attempts == self.max_attempts)
        self._busy[reference] = _Busy(worker=worker, outcome=outcome, since=time.monotonic())

    def _started(self, reference: Any) -> None:
        worker = self._booting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts > self.max_failed_starts:
                raise PoolError(
                    f"{self._failed_starts} workers failed to start, the last one: {_cause(error)}"
                ) from error
            return
        self._failed_starts = 0
        self._feed(worker)

    def _ended(self, reference: Any) -> Outcome | None:
        """What became of an item; None when it is tried again."""
        work = self._busy.pop(reference)
        outcome = work.outcome
        # RayTaskError: the item raised and the actor lives. Any other RayError: the actor is lost.
        alive, again = True, False
        try:
            outcome.result = ray.get(reference)
        except RayError as error:
            outcome.errors.append(_cause(error))
            alive = isinstance(error, RayTaskError)
            if not alive:
                ray.kill(work.worker)
            again = outcome.attempts < self.max_attempts
            outcome.failed = not again
            if again:
                self._todo.append(outcome)  # to the back: others go first
                self.on_retry(outcome)
        if alive:
            self._feed(work.worker)
        return None if again else outcome

    def _end_late_ones(self) -> None:
        if self.timeout_s is None:
            return
        for work in self._busy.values():
            if time.monotonic() - work.since > self.timeout_s:
                ray.kill(work.worker)  # its reference fails at the next wait


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
