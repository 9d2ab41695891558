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

from mvqkd.pipeline.cluster.actors import LeavingError, actor_of
from mvqkd.pipeline.cluster.causes import cause_of, is_of
from mvqkd.pipeline.cluster.connect import check_fits, read_board, resources, start_board
from mvqkd.pipeline.cluster.hand import Deadline, Hand
from mvqkd.pipeline.cluster.metrics import DriverMetrics, Labels
from mvqkd.pipeline.cluster.outage import Outage
from mvqkd.pipeline.cluster.pool import Note, Outcome, Resources, Share, Watch, WorkerSettings
from mvqkd.pipeline.errors import PoolError
from mvqkd.pipeline.run_sections import ClusterConfig
from mvqkd.storage.errors import StoreOutageError

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
        """As `Pool.run`. An attempt that takes longer than `timeout_s`, or far longer than others, has its actor
        killed."""
        check_fits(self._config, share)
        board, items = start_board(), list(items)
        metrics = DriverMetrics(Labels.of(settings, self._run), left=len(items))
        actor = actor_of(settings, cpus=share.cpus, gpus=share.gpus, at_once=share.at_once)

        def look() -> None:
            watch.on_notes(list(read_board(board).values()))

        def again(outcome: Outcome) -> None:
            metrics.retried()
            watch.on_retry(outcome)

        dispatcher = Dispatcher(
            spawn=lambda: actor.remote(settings, board, self._run),
            workers=share.workers,
            max_attempts=max_attempts,
            at_once=share.at_once,
            deadline=Deadline(timeout_s, size=share.size),
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
class Dispatcher:
    """Runs `worker.run(item, last_attempt=...)` for every item on a set of actors.

    An actor that is lost takes all items in its hands with it. Where there was one, that one is charged with an
    attempt; of several nobody knows which of them did it, so none is, and each is alone with an actor from then on.
    Where the store is out of reach, or a worker was asked to end, no item is charged.

    Args:
        spawn: makes an actor handle. Its class must have `max_restarts=0`, so that attempts stay exact.
        workers: actors wanted. Surplus ones wait as pending actors, which is what an autoscaler sees as demand.
        at_once: items that an actor has in hand, as long as there are more than the actors can begin at once.
        max_attempts: tries for one item, whether it raised or took its actor down.
        max_failed_starts: actors in a row that may fail to start before all is given up.
        deadline: an item that takes longer has its actor killed.
        on_poll: called at least every half second.
        on_retry: called with an item that failed and will be tried again; its last error says why.
        outage: how long the store may be out of reach.
    """

    spawn: Callable[[], Any]
    workers: int
    at_once: int = 1
    max_attempts: int = 3
    max_failed_starts: int = 3
    deadline: Deadline = field(default_factory=lambda: Deadline(None))
    on_poll: Callable[[], None] = lambda: None
    on_retry: Callable[[Outcome], None] = lambda outcome: None
    outage: Outage = field(default_factory=Outage)
    _todo: deque[Outcome] = field(default_factory=deque, init=False)
    _alone: deque[Outcome] = field(default_factory=deque, init=False)
    _booting: dict[Any, Any] = field(default_factory=dict, init=False)
    _busy: dict[Any, Hand] = field(default_factory=dict, init=False)
    _hands: set[Hand] = field(default_factory=set, init=False)
    _failed_starts: int = field(default=0, init=False)

    def run(self, items: Iterable[Any]) -> Iterator[Outcome]:
        """One outcome for every item, as they come.

        Raises:
            PoolError: no actor can be started, or the store is out of reach for too long.
        """
        self._todo.extend(Outcome(item=item) for item in items)
        try:
            while self._todo or self._alone or self._busy:
                self._spawn()
                for reference in self._wait():
                    if reference in self._booting:
                        self._started(reference)
                    else:
                        yield from self._ended(reference)
                self._end_late_ones()
                for hand in [hand for hand in self._hands if not hand.items]:
                    self._feed(hand)
                self.on_poll()
        finally:
            for worker in [*self._booting.values(), *(hand.worker for hand in self._hands)]:
                with contextlib.suppress(RayError):
                    ray.kill(worker)

    def _wait(self) -> list[Any]:
        """What is ready; soon after something is, or after a while."""
        references = [*self._booting, *self._busy]
        if not references:  # an outage, and nobody is at work
            time.sleep(POLL_S)
            return []
        return ray.wait(references, num_returns=1, timeout=POLL_S)[0]

    def _spawn(self) -> None:
        if self.outage.seconds_left:
            return
        waiting = len(self._todo) + len(self._alone)
        while len(self._booting) + len(self._hands) < self.workers and len(self._booting) < waiting:
            worker = self.spawn()
            self._booting[worker.ready.remote()] = worker

    def _started(self, reference: Any) -> None:
        worker = self._booting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            with contextlib.suppress(RayError):
                ray.kill(worker)
            if is_of(error, StoreOutageError):
                self.outage.seen(cause_of(error))
                return
            if getattr(error, "preempted", False):
                return
            self._failed_starts += 1
            if self._failed_starts > self.max_failed_starts:
                raise PoolError(
                    f"{self._failed_starts} workers failed to start, the last one: {cause_of(error)}"
                ) from error
            return
        self._failed_starts = 0
        hand = Hand(worker)
        self._hands.add(hand)
        self._feed(hand)

    def _feed(self, hand: Hand) -> None:
        """Give an actor what it can take; one that gets nothing makes room for others."""
        # One item at a time finds out whether it is over.
        if self.outage.is_on and not hand.leaving and (self.outage.seconds_left or self._busy):
            return
        if self._alone and not hand.items and not hand.leaving:
            self._give(hand, self._alone.popleft(), alone=True)
        while self._todo and len(hand.items) < self._room(hand):
            self._give(hand, self._todo.popleft())
        if not hand.items:
            self._drop(hand)

    def _room(self, hand: Hand) -> int:
        if hand.alone or hand.leaving:
            return 0
        if self.outage.is_on:
            return 1 if not self._busy else 0
        # Towards the end nobody holds what another one could begin.
        return self.at_once if len(self._todo) > self.workers else 1

    def _give(self, hand: Hand, outcome: Outcome, *, alone: bool = False) -> None:
        outcome.attempts += 1
        reference = hand.worker.run.remote(outcome.item, last_attempt=outcome.attempts == self.max_attempts)
        hand.take(reference, outcome, alone=alone)
        self._busy[reference] = hand

    def _ended(self, reference: Any) -> Iterator[Outcome]:
        """What became of an item, or of all items of an actor that is lost; those that are tried again are kept."""
        hand = self._busy[reference]
        try:
            result = ray.get(reference)
        except RayTaskError as error:  # the item raised and the actor lives
            if is_of(error, LeavingError, StoreOutageError):
                self._give_back(hand, reference, error)
            else:
                yield from self._failed(self._let_go(hand, reference), error)
        except RayError as error:
            yield from self._lost(hand, error)
            return
        else:
            self.outage.over()
            self.deadline.learn(hand.items[reference].item, hand.seconds(reference))
            outcome = self._let_go(hand, reference)
            outcome.result = result
            yield outcome
        self._feed(hand)

    def _give_back(self, hand: Hand, reference: Any, error: RayTaskError) -> None:
        """An item that failed for what it has nothing to do with."""
        waiting = self._alone if hand.alone else self._todo
        outcome = self._let_go(hand, reference)
        outcome.attempts -= 1
        waiting.appendleft(outcome)
        if is_of(error, LeavingError):
            hand.leaving = True
        else:
            self.outage.seen(cause_of(error))

    def _lost(self, hand: Hand, error: RayError) -> Iterator[Outcome]:
        outcomes = list(hand.items.items())
        self._drop(hand)
        # A machine that is taken away says nothing of what was done on it.
        taken_away = hand.leaving or bool(getattr(error, "preempted", False))
        for number, (reference, outcome) in enumerate(outcomes):
            del self._busy[reference]
            charged = not taken_away and (number == 0 if hand.late else len(outcomes) == 1)
            if charged:
                yield from self._failed(outcome, error, to=self._alone if hand.alone else self._todo)
                continue
            outcome.attempts -= 1
            (self._todo if taken_away or hand.late else self._alone).append(outcome)

    def _failed(
        self, outcome: Outcome, error: RayError, *, to: deque[Outcome] | None = None
    ) -> Iterator[Outcome]:
        outcome.errors.append(cause_of(error))
        outcome.failed = outcome.attempts >= self.max_attempts
        if outcome.failed:
            yield outcome
            return
        (self._todo if to is None else to).append(outcome)  # to the back: others go first
        self.on_retry(outcome)

    def _let_go(self, hand: Hand, reference: Any) -> Outcome:
        del self._busy[reference]
        return hand.let_go(reference)

    def _drop(self, hand: Hand) -> None:
        self._hands.discard(hand)
        with contextlib.suppress(RayError):
            ray.kill(hand.worker)

    def _end_late_ones(self) -> None:
        if self.outage.is_on:
            return  # nobody knows how long anything takes
        for hand in self._hands:
            if hand.items and not hand.late and self.deadline.is_over(hand.oldest.item, hand.seconds()):
                hand.late = True
                ray.kill(hand.worker)  # its references fail at the next wait
