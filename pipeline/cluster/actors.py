"""A worker and its settings as a Ray actor."""

import os
import socket
import threading
import time
from typing import Any

import ray

from mvqkd.pipeline.cluster.metrics import Labels, WorkerMetrics
from mvqkd.pipeline.cluster.pool import Note, WorkerSettings
from mvqkd.storage.no_pandas import leave_pandas_out

NOTE_EVERY_S = 1.0


class WorkerActor:
    """Builds a worker where it runs and hands the items to it; `board` is told how far it is, and so is Prometheus."""

    def __init__(self, settings: WorkerSettings, board: Any, run: str = "") -> None:
        leave_pandas_out()
        self._metrics = WorkerMetrics(Labels.of(settings, run))
        self._worker = settings.build()
        self._board, self._key = board, ray.get_runtime_context().get_actor_id()
        self._name = f"{socket.gethostname()}/{os.getpid()}"
        self._next_note = 0.0
        self._lock = threading.Lock()

    def run(self, item: Any, *, last_attempt: bool) -> Any:
        """Work on one item; see `Worker.run`. Called in as many threads as the worker takes items at a time."""
        last: list[Note] = []

        def note(now: Note) -> None:
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


def actor_of(settings: WorkerSettings, *, cpus: float, gpus: float, at_once: int = 1) -> Any:
    """The actor class, under the worker's name; never restarted by Ray: the dispatcher counts attempts itself."""
    name = type(settings).__name__.removesuffix("Settings") + "Actor"
    named = type(name, (WorkerActor,), {"__module__": __name__})
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_concurrency=at_once)(named)
