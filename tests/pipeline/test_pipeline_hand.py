"""What an actor has in hand, and for how long."""

import pytest

from mvqkd.pipeline.cluster import hand
from mvqkd.pipeline.cluster.hand import Deadline, Hand
from mvqkd.pipeline.cluster.pool import Outcome


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hand, "time", clock)
    return clock


def test_the_time_of_an_item_counts_from_when_it_is_the_oldest(clock: Clock) -> None:
    held = Hand("actor")
    held.take("a", Outcome(item=1), alone=False)
    clock.now = 5.0
    held.take("b", Outcome(item=2), alone=False)
    clock.now = 7.0
    assert (held.seconds(), held.oldest.item) == (7.0, 1)
    assert held.let_go("a").item == 1
    clock.now = 8.0
    assert (held.seconds(), held.oldest.item) == (1.0, 2)
    held.take("c", Outcome(item=3), alone=False)
    # One that is through before its turn leaves the oldest one's time as it is.
    assert held.seconds("c") == 0.0 and held.let_go("c").item == 3
    assert held.seconds() == 1.0
    assert held.let_go("b").item == 2 and not held.items
    clock.now = 20.0
    held.take("d", Outcome(item=4), alone=True)
    assert held.seconds() == 0.0 and held.alone
    held.let_go("d")
    assert not held.alone


def test_a_deadline_follows_from_what_was_seen() -> None:
    deadline = Deadline(None, size=lambda item: item)
    for item, seconds in ((1.0, 60.0), (2.0, 100.0)):
        deadline.learn(item, seconds)
    assert not deadline.is_over(1.0, 1e6), "two are too few to tell"
    deadline.learn(1.0, 50.0)
    # The slowest took 60 s for a size of 1.
    assert not deadline.is_over(1.0, 600.0) and deadline.is_over(1.0, 601.0)
    assert not deadline.is_over(3.0, 1800.0) and deadline.is_over(3.0, 1801.0)
    assert not deadline.is_over(0.1, 300.0) and deadline.is_over(0.1, 301.0), "never less than five minutes"


def test_a_deadline_that_is_set_holds() -> None:
    deadline = Deadline(2.0)
    assert not deadline.is_over("any", 2.0) and deadline.is_over("any", 2.1)
