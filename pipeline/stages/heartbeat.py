"""The sign of life of an extraction: `progress.json` in the run's folder, written anew every half minute.

`mvqkd status` reads it beside the listing of the table, from anywhere, also when the cluster is gone: the listing says
which shards are done, this says which are in hand and when the driver was last alive.
"""

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Self

from mvqkd.pipeline.cluster.pool import Note
from mvqkd.pipeline.show.progress import say
from mvqkd.storage.artifacts import write_json
from mvqkd.storage.errors import StorageError
from mvqkd.storage.location import Location
from mvqkd.workers.plan import Plan, Shard

PROGRESS = "progress.json"
BEAT_EVERY_S = 30.0
RATE_WINDOW_S = 600.0


@dataclass(kw_only=True)
class Heartbeat:
    """Writes `progress.json` from a thread for the time of the block.

    A store that does not answer for a while does not end the extraction: the next beat is as good.

    Args:
        root: the run's folder.
        table: url of the table, for the reader.
        plan: of which shards are extracted.
        todo: those that are not committed yet.
        shards_done, hours_done: what is, hours of audio.
        every_s: time between two beats.
    """

    root: Location
    table: str
    plan: Plan
    todo: InitVar[Sequence[Shard]]
    shards_done: int
    hours_done: float
    every_s: float = BEAT_EVERY_S
    _left: dict[int, float] = field(init=False)  # hours of the shards that are not through, by position
    _num_failed: int = field(default=0, init=False)
    _last_commit: float | None = field(default=None, init=False)
    _in_hand: dict[int, Note] = field(default_factory=dict, init=False)
    _samples: deque[tuple[float, float]] = field(default_factory=deque, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _end: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _began: float = field(default_factory=time.time, init=False)
    _is_unheard: bool = field(default=False, init=False)

    def __post_init__(self, todo: Sequence[Shard]) -> None:
        self._left = {shard.position: shard.hours for shard in todo}

    def __enter__(self) -> Self:
        self._write("working")
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        assert self._thread is not None
        self._thread.join()
        self._write("ended" if kind is None else "interrupted")

    def _beat(self) -> None:
        while not self._end.wait(self.every_s):
            self._write("working")

    def take(self, notes: Sequence[Note]) -> None:
        """What workers said last of a shard that they have: `position`, and `hours` of it that are through."""
        with self._lock:
            self._in_hand |= {note["position"]: note for note in notes}

    def through(self, position: int, *, is_failed: bool) -> None:
        """A shard is committed, or given up."""
        with self._lock:
            hours = self._left.pop(position)
            self._in_hand.pop(position, None)
            if is_failed:
                self._num_failed += 1
            else:
                self.shards_done += 1
                self.hours_done += hours
                self._last_commit = time.time()

    def _told(self) -> list[dict[str, Any]]:
        return [
            {
                "worker": note.get("worker", ""),
                "position": position,
                "hours": note["hours"],
                "of_hours": self._left[position],
            }
            for position, note in sorted(self._in_hand.items())
            if position in self._left  # the last note of a worker that is gone may be of a shard that is done
        ]

    def _write(self, state: str) -> None:
        now = time.time()
        with self._lock:
            done, failed, hours_done = self.shards_done, self._num_failed, self.hours_done
            last_commit = self._last_commit
            in_hand = self._told() if state == "working" else []
        self._samples.append((now, hours_done + sum(one["hours"] for one in in_hand)))
        while now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        content = {
            "version": 1,
            "state": state,
            "time": now,
            "began": self._began,
            "every_s": self.every_s,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "job": _submission_id(),
            "table": self.table,
            "shards": len(self.plan.shards),
            "shards_done": done,
            "shards_failed": failed,
            "hours": self.plan.hours,
            "hours_done": hours_done,
            "last_commit": last_commit,
            "in_hand": in_hand,
            "samples": list(self._samples),
        }
        try:
            write_json(self.root, PROGRESS, content)
        except StorageError as error:
            if not self._is_unheard:
                say(f"{error}; the work goes on, `mvqkd status` does not see how far it is")
            self._is_unheard = True
        else:
            self._is_unheard = False


def _submission_id() -> str | None:
    """Of the job that this process is the driver of."""
    metadata: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get(
        "metadata", {}
    )
    return metadata.get("job_submission_id")
