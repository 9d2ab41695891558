"""What a run tells Prometheus, through Ray: counters of the workers, gauges of their queues, shards of the driver.

Ray exports each name below with `ray_` before it, and a counter's with `_total` behind it, on the metrics port of every
node. Rates and shares are left to Prometheus, which can sum over workers first: the share of time that the teacher is
busy is `rate(teacher_busy_seconds) / rate(running_seconds)`, padding is
`1 - rate(audio_seconds) / rate(computed_seconds)`, and RRL is `rate(rrl_frames) / rate(frames)`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray.util.metrics

TAGS = ("stage", "run")

COUNTERS = {
    "audio_s": ("mvqkd_audio_seconds", "seconds of audio that the teacher has done"),
    "computed_s": ("mvqkd_computed_seconds", "seconds given to the teacher, padding included"),
    "teacher_busy_s": ("mvqkd_teacher_busy_seconds", "seconds in which the teacher computed"),
    "running_s": ("mvqkd_running_seconds", "seconds since the worker began its first shard"),
    "utterances": ("mvqkd_utterances", "utterances that the teacher has done"),
    "left_out": ("mvqkd_left_out", "utterances that could not be used"),
    "shards": ("mvqkd_shards_written", "shards that a worker has written"),
    "bytes_written": ("mvqkd_written_bytes", "bytes of the shards that were written"),
    "frames": ("mvqkd_frames", "frames that the teacher has done"),
    "rrl_frames": ("mvqkd_rrl_frames", "frames times the relative reconstruction loss of their utterance"),
    "quantizer_busy_s": ("mvqkd_quantizer_busy_seconds", "seconds in which quantizers computed"),
    "waited_s": ("mvqkd_waited_seconds", "seconds in which the teacher waited for audio"),
}
"""By the key in a note's `meters`: a metric's name and what it says. All grow while a worker lives."""

GAUGES = {
    "queued_batches": ("mvqkd_queued_batches", "batches that wait for the teacher"),
    "queued_shards": ("mvqkd_queued_shards", "shards that wait to be packed and written"),
}
"""The same for what goes up and down."""

SHARDS_DONE = ("mvqkd_shards_done", "shards that the driver has the result of")
SHARDS_FAILED = ("mvqkd_shards_failed", "shards that used up their attempts")
SHARDS_RETRIED = ("mvqkd_shards_retried", "attempts that failed and are made again")
SHARDS_LEFT = ("mvqkd_shards_left", "shards that are not through yet")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Tags of a run's metrics. They are seen by everybody who sees the dashboard: names, no paths."""

    stage: str
    run: str = ""

    @classmethod
    def of(cls, settings: object, run: str) -> "Labels":
        """Of the workers that are built from these settings: `ExtractSettings` is stage `extract`."""
        return cls(stage=type(settings).__name__.removesuffix("Settings").lower(), run=run)

    @property
    def tags(self) -> dict[str, str]:
        """As Ray takes them."""
        return {"stage": self.stage, "run": self.run}


class WorkerMetrics:
    """Turns the notes of one worker into metrics.

    Its `meters` are sums since the worker was built, so what is counted is by how much each has grown. A worker that
    is built anew begins at zero again, whether its process is a new one or not.

    Args:
        labels: tags of every value.
        instruments: where `Counter` and `Gauge` come from; `ray.util.metrics` if none are given.
    """

    def __init__(self, labels: Labels, *, instruments: Any = ray.util.metrics) -> None:
        self._counters = {key: _counter(instruments, labels, *COUNTERS[key]) for key in COUNTERS}
        self._gauges = {key: _gauge(instruments, labels, *GAUGES[key]) for key in GAUGES}
        self._seen = dict.fromkeys(COUNTERS, 0.0)

    def note(self, note: Mapping[str, Any]) -> None:
        """Count what has happened since the last note. What a note does not say stays as it was."""
        meters = note.get("meters", {})
        for key in self._seen.keys() & meters.keys():
            now = float(meters[key])
            if not math.isfinite(now):
                continue  # it would stay in the sum for good
            grown = now - self._seen[key] if now >= self._seen[key] else now
            self._seen[key] = now
            if grown > 0:  # Ray takes no zero
                self._counters[key].inc(grown)
        for key in self._gauges.keys() & meters.keys():
            self._gauges[key].set(float(meters[key]))


class DriverMetrics:
    """Counts what becomes of the items of a pool.

    Args:
        labels: tags of every value.
        left: items that the pool was given.
        instruments: as of `WorkerMetrics`.
    """

    def __init__(self, labels: Labels, *, left: int, instruments: Any = ray.util.metrics) -> None:
        self._done, self._failed, self._retried = (
            _counter(instruments, labels, *named) for named in (SHARDS_DONE, SHARDS_FAILED, SHARDS_RETRIED)
        )
        self._gauge_left = _gauge(instruments, labels, *SHARDS_LEFT)
        self._left = left
        self._gauge_left.set(left)

    def ended(self, *, failed: bool) -> None:
        """An item is through."""
        (self._failed if failed else self._done).inc()
        self._left -= 1
        self._gauge_left.set(self._left)

    def retried(self) -> None:
        """An attempt failed, and another will be made."""
        self._retried.inc()


def _counter(instruments: Any, labels: Labels, name: str, description: str) -> Any:
    return instruments.Counter(name, description, TAGS).set_default_tags(labels.tags)


def _gauge(instruments: Any, labels: Labels, name: str, description: str) -> Any:
    return instruments.Gauge(name, description, TAGS).set_default_tags(labels.tags)
