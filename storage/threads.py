"""Work on many objects at a time: each takes some milliseconds to answer, whatever its size."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READING_THREADS = 8
_AHEAD = 64


def map_in_order(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Results of `work` in the order of the items, a bounded number of them computed before they are asked for.

    The first exception is raised at its place in the order and ends the work.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="storage") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
