"""What the notes of workers become for Prometheus."""

from typing import Any

import pytest

from mvqkd.pipeline.cluster.metrics import COUNTERS, GAUGES, DriverMetrics, Labels, WorkerMetrics

LABELS = Labels(stage="extract", run="demo")


class Recorded:
    """In place of `ray.util.metrics`: what a counter would stand at, what was last set, and the tags."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.tags: dict[str, dict[str, str]] = {}

    def Counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        return _Instrument(self, name, tag_keys)

    Gauge = Counter


class _Instrument:
    def __init__(self, recorded: Recorded, name: str, tag_keys: tuple[str, ...]) -> None:
        self._recorded, self._name, self._tag_keys = recorded, name, tag_keys

    def set_default_tags(self, tags: dict[str, str]) -> "_Instrument":
        assert set(tags) == set(self._tag_keys)
        self._recorded.tags[self._name] = tags
        return self

    def inc(self, value: float = 1.0) -> None:
        assert value > 0, "Ray raises"
        self._recorded.values[self._name] = self._recorded.values.get(self._name, 0.0) + value

    def set(self, value: float) -> None:
        self._recorded.values[self._name] = value


def test_what_has_grown_is_counted() -> None:
    recorded = Recorded()
    metrics = WorkerMetrics(LABELS, instruments=recorded)
    for audio_s, queued in ((10.0, 1.0), (10.0, 3.0), (25.0, 2.0)):
        metrics.note({"position": 0, "hours": 0.1, "meters": {"audio_s": audio_s, "queued_batches": queued}})
    assert recorded.values == {"mvqkd_audio_seconds": 25.0, "mvqkd_queued_batches": 2.0}
    assert recorded.tags["mvqkd_audio_seconds"] == {"stage": "extract", "run": "demo"}


def test_a_worker_built_anew_is_counted_from_its_beginning() -> None:
    recorded = Recorded()
    first = WorkerMetrics(LABELS, instruments=recorded)
    first.note({"meters": {"shards": 3}})
    first.note({"meters": {"shards": 1}})  # a new worker in the same process
    WorkerMetrics(LABELS, instruments=recorded).note({"meters": {"shards": 2}})  # one in another
    assert recorded.values == {"mvqkd_shards_written": 6.0}


@pytest.mark.parametrize(
    "note", [{}, {"position": 3, "hours": 1.0}, {"meters": {}}, {"meters": {"audio_s": 0.0}}]
)
def test_a_note_that_says_nothing_counts_nothing(note: dict[str, Any]) -> None:
    recorded = Recorded()
    WorkerMetrics(LABELS, instruments=recorded).note(note)
    assert recorded.values == {}


def test_a_figure_that_is_none_does_not_spoil_the_sum() -> None:
    recorded = Recorded()
    metrics = WorkerMetrics(LABELS, instruments=recorded)
    for value in (4.0, float("nan"), 6.0, 7.0):
        metrics.note({"meters": {"rrl_frames": value}})
    assert recorded.values == {"mvqkd_rrl_frames": 7.0}


def test_every_name_is_one_that_prometheus_takes_and_is_there_once() -> None:
    names = [name for name, _ in (*COUNTERS.values(), *GAUGES.values())]
    assert len(set(names)) == len(names)
    assert all(name.startswith("mvqkd_") and name.replace("_", "").isalnum() for name in names)
    assert not any(name.endswith("_total") for name in names), "Ray appends it"


def test_the_driver_counts_what_becomes_of_shards() -> None:
    recorded = Recorded()
    metrics = DriverMetrics(LABELS, left=3, instruments=recorded)
    metrics.retried()
    metrics.ended(failed=False)
    metrics.ended(failed=True)
    assert recorded.values == {
        "mvqkd_shards_left": 1,
        "mvqkd_shards_retried": 1.0,
        "mvqkd_shards_done": 1.0,
        "mvqkd_shards_failed": 1.0,
    }


def test_labels_name_the_stage_of_the_settings() -> None:
    class ExtractSettings: ...

    assert Labels.of(ExtractSettings(), "demo") == LABELS
