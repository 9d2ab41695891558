"""What a worker has done since it was built, in figures that only grow, and how full its queues are."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meters:
    """Figures of an extraction worker; several threads may add to them.

    Cumulative: `audio_s` that the teacher has been given, `computed_s` with padding, `teacher_busy_s` and
    `quantizer_busy_s` of the device's time, `waited_s` for audio while the teacher had nothing to do, `running_s` of
    wall time since the first shard, `utterances`, `frames`, `left_out`, `shards`, `bytes_written`, and `rrl_frames`,
    frames times the RRL of their utterance (in the first table). At this moment: `queued_batches` that are decoded,
    `queued_shards` in hand beside the one that the teacher works on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._in_hand = 0
        self._values = dict.fromkeys(
            (
                "audio_s",
                "computed_s",
                "teacher_busy_s",
                "quantizer_busy_s",
                "waited_s",
                "utterances",
                "left_out",
                "shards",
                "bytes_written",
                "frames",
                "rrl_frames",
                "queued_batches",
            ),
            0.0,
        )

    def add(self, **more: float) -> None:
        """Let figures grow."""
        with self._lock:
            for name, value in more.items():
                self._values[name] += value

    def set_queue(self, batches: int) -> None:
        """How many batches are decoded and wait for the teacher."""
        with self._lock:
            self._values["queued_batches"] = batches

    @contextmanager
    def shard(self) -> Iterator[None]:
        """The time in which a shard is in hand."""
        with self._lock:
            self._since = time.monotonic() if self._since is None else self._since
            self._in_hand += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_hand -= 1

    def read(self) -> dict[str, float]:
        """All figures at this moment."""
        with self._lock:
            running_s = 0.0 if self._since is None else time.monotonic() - self._since
            return {**self._values, "running_s": running_s, "queued_shards": float(max(0, self._in_hand - 1))}
