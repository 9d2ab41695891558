"""First come, first served: several shards are at work in one process, but one at a time has the teacher."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Line:
    """Who comes next; places are given in the order of arrival, and whoever leaves makes room, at any place."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._places: deque[object] = deque()

    @contextmanager
    def place(self) -> Iterator[Callable[[], None]]:
        """A place at the end of the line for the time of the block; the function given waits until it is the first."""
        mine = object()
        with self._changed:
            self._places.append(mine)
        try:
            yield lambda: self._wait_for(mine)
        finally:
            with self._changed:
                self._places.remove(mine)
                self._changed.notify_all()

    def _wait_for(self, place: object) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._places[0] is place)
