"""A store that serves nobody for a while: when something is tried again, and when it is given up; nobody is charged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mvqkd.pipeline.cluster import outage as module
from mvqkd.pipeline.cluster.outage import Outage
from mvqkd.pipeline.cluster.pool import Note, PoolHere, Share, Watch
from mvqkd.pipeline.errors import PoolError
from mvqkd.storage.errors import StoreOutageError


class Clock:
    """A time that passes when it is told to, also by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_waits_grow_and_what_was_begun_before_does_not_count(clock: Clock) -> None:
    outage = Outage(patience_s=1000)
    assert (outage.is_on, outage.seconds_left) == (False, 0)
    waits = []
    for _ in range(8):
        outage.seen("away")
        outage.seen("away too, which was begun earlier")
        waits.append(outage.seconds_left)
        clock.sleep(waits[-1])
        assert outage.seconds_left == 0
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    outage.over()
    assert not outage.is_on
    outage.seen("away again")
    assert outage.seconds_left == 1


def test_one_that_lasts_is_given_up_with_a_remedy(clock: Clock) -> None:
    outage = Outage(patience_s=60)
    with pytest.raises(
        PoolError, match=r"for 1 minutes nothing could be done: no space; once that is put right"
    ):
        while True:
            outage.seen("no space")
            clock.sleep(outage.seconds_left)
    assert 1060 < clock.now < 1100


@dataclass(kw_only=True)
class AwaySettings:
    """Of a worker whose store is away for the first calls."""

    away: int
    tried: list[tuple[str, bool]] = field(default_factory=list)

    def build(self) -> "AwaySettings":
        return self

    def run(self, item: str, *, last_attempt: bool, note: Callable[[Note], None]) -> str:
        self.tried.append((item, last_attempt))
        if len(self.tried) <= self.away:
            raise StoreOutageError("s3://b/x", "the server kept answering 503", "run again later")
        return "done"


def test_the_pool_in_this_process_waits_and_charges_nobody(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mvqkd.pipeline.cluster.pool.time", clock)
    settings = AwaySettings(away=3)
    watch = Watch(on_notes=lambda _: None, on_retry=lambda _: pytest.fail("charged"))
    outcomes: list[Any] = list(
        PoolHere(num_cpus=1).run(
            ["a", "b"], settings, share=Share(workers=1, cpus=1, gpus=0, keys=""), watch=watch, max_attempts=2
        )
    )
    assert [(o.item, o.attempts, o.failed) for o in outcomes] == [("a", 1, False), ("b", 1, False)]
    assert settings.tried == [("a", False)] * 4 + [("b", False)]
    assert clock.now == 1000 + 1 + 2 + 4
    assert capsys.readouterr().err.count("kept answering 503") == 1
