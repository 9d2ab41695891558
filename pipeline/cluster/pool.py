"""Where work is done: the protocol of a pool, what becomes of an item, and a pool in this process.

A worker is a plain class. Its settings travel, and build it where it works: in an actor of Ray (`dispatch.py`), or
here, where a debugger and a test can look at it.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mvqkd.pipeline.cluster.environment import as_in_job
from mvqkd.pipeline.cluster.outage import Outage
from mvqkd.pipeline.errors import PoolError
from mvqkd.pipeline.run_sections import ClusterConfig
from mvqkd.storage.errors import StoreOutageError

if TYPE_CHECKING:
    from mvqkd.workers.distill.job import TrainJob

Note = dict[str, Any]
"""How far a worker is, in figures."""
LOOK_EVERY_S = 0.2


class Worker(Protocol):
    """Loaded once, then given one item after the other."""

    def run(self, item: Any, *, last_attempt: bool, note: Callable[[Note], None]) -> Any:
        """Work on an item; `note` says how far it is, and may raise to end the attempt.

        What it raises costs the item an attempt, but for a `StoreOutageError`.
        """
        ...


class WorkerSettings(Protocol):
    """What a worker is built from, in the process where it works; can be pickled."""

    def build(self) -> Worker:
        """Load the worker."""
        ...


@dataclass(kw_only=True)
class Outcome:
    """What became of one item: `result`, or `errors` of all attempts when `failed`."""

    item: Any
    attempts: int = 0
    result: Any = None
    errors: list[str] = field(default_factory=list)
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Resources:
    """CPUs and GPUs of a pool, and CPUs of its largest machine: what one worker can ask for."""

    cpus: int
    gpus: int
    machine_cpus: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many workers, and what each asks for.

    Attributes:
        keys: of the run file that say so, for messages.
        at_once: items that a worker is given at a time; its `run` is called in as many threads.
        size: of an item, by which one is expected to take longer than another.
    """

    workers: int
    cpus: float
    gpus: float
    keys: str
    at_once: int = 1
    size: Callable[[Any], float] = lambda _: 1.0


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is told while a pool works.

    Attributes:
        on_notes: called about twice a second, and at the end, with the latest note of every worker that made one.
        on_retry: called with an item that failed and will be tried again; its last error says why.
    """

    on_notes: Callable[[list[Note]], None]
    on_retry: Callable[[Outcome], None]


class Pool(Protocol):
    """Workers somewhere."""

    @property
    def resources(self) -> Resources:
        """What there is at this moment."""
        ...

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
        """Give every item to a worker; one outcome each, as they come.

        Args:
            items: what to work on; each is with one worker at a time.
            settings: of every worker.
            share: how many workers, and what each asks for.
            watch: what is told meanwhile.
            max_attempts: tries for one item.
            timeout_s: an attempt that takes longer is ended, where the pool can. None: one that takes far longer than
                others of its size did.

        Raises:
            PoolError: no worker can be started, or the store has been out of reach for too long.
            ValueError: no machine is large enough for one worker.
        """
        ...

    def train(self, job: "TrainJob", *, use_gpu: bool, note: Callable[[Note], None]) -> None:
        """Train a student to its end, from its last checkpoint if there is one.

        Raises:
            PoolError: the training failed more often than `distill.max_failures` allows.
        """
        ...


@contextmanager
def open_pool(config: ClusterConfig, *, run: str = "") -> Iterator[Pool]:
    """The pool that `cluster.address` names, for the time of the block; `run` is what its metrics call the run.

    Raises:
        ConnectionError: no cluster answers there, or none can be started here.
    """
    if config.address == "none":
        yield PoolHere(num_cpus=config.num_cpus)
        return
    # Ray takes a second to import, and is not needed where it is not used.
    from mvqkd.pipeline.cluster.connect import cluster
    from mvqkd.pipeline.cluster.dispatch import RayPool

    config = as_in_job(config)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with cluster(config):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there, which ends without a word
        yield RayPool(config, run=run)


class PoolHere:
    """One worker, in this process. A time limit cannot be kept, and a crash ends the run.

    Args:
        num_cpus: threads that the worker may use; all CPUs of this machine by default.
    """

    def __init__(self, *, num_cpus: int | None = None) -> None:
        self._cpus = num_cpus or os.cpu_count() or 1

    @property
    def resources(self) -> Resources:
        """CPUs and GPUs of this machine."""
        import torch

        return Resources(cpus=self._cpus, gpus=torch.cuda.device_count(), machine_cpus=self._cpus)

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
        """As `Pool.run`; one item after the other, whatever `share.at_once` allows."""
        have = self.resources
        if share.cpus > have.cpus or share.gpus > have.gpus:
            raise ValueError(
                f"{share.keys}: a worker wants {share.cpus:g} CPUs and {share.gpus:g} GPUs, this process has "
                f"{have.cpus} CPUs and {have.gpus} GPUs; ask for less"
            )
        try:
            worker = settings.build()
        except Exception as error:
            raise PoolError(f"the worker failed to start: {_cause(error)}") from error
        looked = time.monotonic()
        last: Note | None = None

        def note(now: Note) -> None:
            nonlocal looked, last
            last = now
            if time.monotonic() - looked >= LOOK_EVERY_S:
                looked = time.monotonic()
                watch.on_notes([now])

        todo = deque(Outcome(item=item) for item in items)
        outage = Outage()
        while todo:
            time.sleep(outage.seconds_left)
            outcome = todo.popleft()
            outcome.attempts += 1
            try:
                outcome.result = worker.run(
                    outcome.item, last_attempt=outcome.attempts == max_attempts, note=note
                )
            except StoreOutageError as error:
                outcome.attempts -= 1
                todo.appendleft(outcome)
                outage.seen(str(error))
                continue
            except Exception as error:  # noqa: BLE001 -- whatever an item raises costs that item an attempt
                outcome.errors.append(_cause(error))
                if outcome.attempts < max_attempts:
                    todo.append(outcome)  # to the back: others go first
                    watch.on_retry(outcome)
                    continue
                outcome.failed = True
            else:
                outage.over()
            if last is not None:
                watch.on_notes([last])
            yield outcome

    def train(self, job: "TrainJob", *, use_gpu: bool, note: Callable[[Note], None]) -> None:
        """As `Pool.train`; one process, `distill.workers` has to be 1."""
        import torch

        from mvqkd.workers.distill.job import train_here

        if job.distill.workers != 1:
            raise ValueError(
                f"distill.workers {job.distill.workers}: without Ray (cluster.address none) one worker trains; "
                "set it to 1 or give a cluster.address"
            )
        train_here(job, device=torch.device("cuda" if use_gpu else "cpu"), note=note)


def _cause(error: BaseException) -> str:
    """One line: what was raised, and its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"
