"""How long something took, all times together."""

import time
from typing import Self


class Stopwatch:
    """Adds up the wall time of the blocks that it is held for, in `seconds`. One thread at a time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> Self:
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since
