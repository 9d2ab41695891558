"""A worker and its settings as a Ray actor."""

import os
import signal
import socket
import threading
import time
from typing import Any

import ray

from mvqkd.pipeline.cluster.metrics import Labels, WorkerMetrics
from mvqkd.pipeline.cluster.pool import Note, WorkerSettings
from mvqkd.storage.no_pandas import leave_pandas_out

NOTE_EVERY_S = 1.0
GOODBYE_S = 5.0


class LeavingError(Exception):
    """The process of this worker was asked to end, so the item is given back; that is not the item's fault."""


class WorkerActor:
    """Builds a worker where it runs and hands the items to it; `board` is told how far it is, and so is Prometheus.

    SIGTERM, which comes before a machine is taken away, makes it give back what it has in hand.
    """

    def __init__(self, settings: WorkerSettings, board: Any, run: str = "") -> None:
        leave_pandas_out()
        self._leaving = threading.Event()
        # This is the main thread, the only one that may; and before anything slow, so that it is heard at any time.
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        self._settings = settings
        self._metrics = WorkerMetrics(Labels.of(settings, run))
        self._board, self._key = board, ray.get_runtime_context().get_actor_id()
        self._name = f"{socket.gethostname()}/{os.getpid()}"
        self._next_note = 0.0
        self._lock = threading.Lock()
        self._num_in_hand, self._let_go = 0, threading.Condition()

    def ready(self) -> None:
        """Build the worker; not in the constructor, whose errors Ray hands on as text alone."""
        self._worker = self._settings.build()

    def run(self, item: Any, *, last_attempt: bool) -> Any:
        """Work on one item; see `Worker.run`. Called in as many threads as the worker takes items at a time.

        Raises:
            LeavingError: this process was asked to end.
        """
        with self._let_go:
            self._num_in_hand += 1
        try:
            return self._run(item, last_attempt)
        finally:
            with self._let_go:
                self._num_in_hand -= 1
                self._let_go.notify_all()

    def _run(self, item: Any, last_attempt: bool) -> Any:
        last: list[Note] = []
        self._check_leaving()

        def note(now: Note) -> None:
            self._check_leaving()
            last[:] = [{**now, "worker": self._name}]
            with self._lock:
                if time.monotonic() >= self._next_note:
                    self._next_note = time.monotonic() + NOTE_EVERY_S
                    self._board.put.remote(self._key, last[0])
                    self._metrics.note(now)

        result = self._worker.run(item, last_attempt=last_attempt, note=note)
        if last:
            with self._lock:
                self._metrics.note(last[0])
            # Waited for, so that the driver has seen the end when it has the result.
            ray.get(self._board.put.remote(self._key, last[0]))
        return result

    def _check_leaving(self) -> None:
        if self._leaving.is_set():
            raise LeavingError("this worker was asked to end")

    def _leave(self) -> None:
        if not self._leaving.is_set():
            self._leaving.set()
            threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        """End this process when nothing is in hand. The driver does so sooner, where there is one."""
        with self._let_go:
            self._let_go.wait_for(lambda: not self._num_in_hand)
        time.sleep(GOODBYE_S)
        os._exit(0)


def actor_of(settings: WorkerSettings, *, cpus: float, gpus: float, at_once: int = 1) -> Any:
    """The actor class, under the worker's name; never restarted by Ray: the dispatcher counts attempts itself."""
    name = type(settings).__name__.removesuffix("Settings") + "Actor"
    named = type(name, (WorkerActor,), {"__module__": __name__})
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_concurrency=at_once)(named)
