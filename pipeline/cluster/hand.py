"""What an actor has in hand, and how long that may take."""

import time
from collections.abc import Callable
from typing import Any

from mvqkd.pipeline.cluster.pool import Outcome

KNOWN_AFTER = 3
TIMES_AS_LONG = 10.0
SHORTEST_S = 300.0


class Hand:
    """The items that an actor works on, the oldest first; the others wait for it to be through.

    Attributes:
        worker: the actor.
        items: by the reference of their results.
        alone: whether its item must be the only one.
        late: whether it was killed because the oldest one took too long.
        leaving: whether it was asked to end and gives its items back.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.items: dict[Any, Outcome] = {}
        self.alone = self.late = self.leaving = False
        self._since = time.monotonic()

    @property
    def oldest(self) -> Outcome:
        """The item that has been in hand for the longest time."""
        return next(iter(self.items.values()))

    def take(self, reference: Any, outcome: Outcome, *, alone: bool) -> None:
        """One more item."""
        if not self.items:
            self._since = time.monotonic()
        self.items[reference] = outcome
        self.alone = alone

    def let_go(self, reference: Any) -> Outcome:
        """An item that is through."""
        if reference == next(iter(self.items)):
            self._since = time.monotonic()
        self.alone = False
        return self.items.pop(reference)

    def seconds(self, reference: Any = None) -> float:
        """How long the oldest item, or this one, has been worked on; nothing, as far as is known, if it is a later
        one."""
        if reference is not None and reference != next(iter(self.items)):
            return 0.0
        return time.monotonic() - self._since


class Deadline:
    """How long an item may take: what the key says, else ten times as long as the slowest one did, for its size.

    Args:
        fixed_s: of the run file; None where it follows from what was seen.
        size: of an item, such as its hours of audio.
    """

    def __init__(self, fixed_s: float | None, *, size: Callable[[Any], float] = lambda _: 1.0) -> None:
        self._fixed_s, self._size = fixed_s, size
        self._num_seen, self._slowest = 0, 0.0

    def learn(self, item: Any, seconds: float) -> None:
        """An item that went well took so long."""
        self._num_seen += 1
        self._slowest = max(self._slowest, seconds / max(1e-9, self._size(item)))

    def is_over(self, item: Any, seconds: float) -> bool:
        """Whether an item that has taken so long is given up."""
        if self._fixed_s is not None:
            return seconds > self._fixed_s
        if self._num_seen < KNOWN_AFTER:
            return False
        return seconds > max(SHORTEST_S, TIMES_AS_LONG * self._slowest * self._size(item))
