"""Decoding ahead in threads, batches of similar length, and the one loop over batches that all workers share."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, Self, TypeVar

from mvqkd.workers.cuts import UtteranceError

BATCHES_AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def decoded_batches(
    batches: Iterable[Sequence[Item]],
    load: Callable[[Item], Result],
    *,
    threads: int,
    begin: Callable[[Item], None] | None = None,
) -> Iterator[list[Result | UtteranceError]]:
    """As `DecodedBatches`, with threads of its own that are there as long as the iterator is."""
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool,
        DecodedBatches(batches, load, pool=pool, begin=begin) as decoded,
    ):
        yield from decoded


class DecodedBatches(Generic[Item, Result]):
    """The results of `load` for every item of every batch, in the order given; loading begins at once.

    While the caller works on one batch, the two after it are loaded. They are counted in batches and not in
    items, because length-sorted batches hold few long items or many short ones. `batches` may be a generator:
    it is drawn on in the caller's thread, three batches before their end at most.

    Iterating gives for each batch its results; an `UtteranceError` stands in place of its result, so that one bad
    file does not end the stream. Every other exception is raised when its batch is asked for. Leaving the block
    drops what has not begun.

    Args:
        batches: any items; an empty batch gives an empty list.
        load: called in threads of the pool, several at a time.
        pool: may be shared by several of these.
        begin: called in the caller's thread for each item before its loading is queued, such as to let a store begin to
            send; it returns at once.
    """

    def __init__(
        self,
        batches: Iterable[Sequence[Item]],
        load: Callable[[Item], Result],
        *,
        pool: Executor,
        begin: Callable[[Item], None] | None = None,
    ) -> None:
        self._batches, self._load, self._pool, self._begin_item = iter(batches), load, pool, begin
        self._waiting: deque[list[Future[Result | UtteranceError]]] = deque()
        self._begin(BATCHES_AHEAD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for futures in self._waiting:
            _cancel(futures)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Result | UtteranceError]:
        self._begin(BATCHES_AHEAD + 1)
        if not self._waiting:
            raise StopIteration
        # The batch leaves the queue only when it is through: where one of it raises, the others are dropped too.
        results = [future.result() for future in self._waiting[0]]
        self._waiting.popleft()
        return results

    @property
    def num_ready(self) -> int:
        """Batches that are loaded and wait for the caller."""
        return sum(all(future.done() for future in futures) for futures in self._waiting)

    def _begin(self, ahead: int) -> None:
        """Let so many batches be in hand, as long as there are some."""
        for batch in islice(self._batches, ahead - len(self._waiting)):
            if self._begin_item is not None:
                for item in batch:
                    self._begin_item(item)
            self._waiting.append([self._pool.submit(_attempt, self._load, item) for item in batch])


def decode_ahead(
    items: Iterable[Item], load: Callable[[Item], Result], *, threads: int, ahead: int
) -> Iterator[Result | UtteranceError]:
    """Results of `load` in the order of `items`, up to `ahead` of them computed before they are asked for.

    An `UtteranceError` is yielded in place of its result. Every other exception is raised at its place in the
    order.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Result | UtteranceError]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(_attempt, load, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            _cancel(waiting)


def drawn_ahead(items: Iterable[Item], *, ahead: int) -> Generator[Item]:
    """The same items in the same order, drawn in one thread of its own, `ahead` of them before they are asked for.

    An exception is raised at its place in the order.
    """
    drawn, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="draw") as pool:
        waiting: deque[Future[Item | object]] = deque(pool.submit(next, drawn, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, drawn, end))
                yield item  # type: ignore[misc]
        finally:
            _cancel(waiting)


def length_sorted_batches(
    items: Sequence[Item], seconds: Sequence[float], *, batch_seconds: float
) -> list[list[Item]]:
    """Batches of items of similar length, longest first, each padded to at most `batch_seconds`.

    Longest first, so that a batch too large for the device shows at the start. An item that is longer than
    `batch_seconds` makes a batch of its own.
    """
    order = sorted(range(len(items)), key=lambda i: (-seconds[i], i))
    batches: list[list[Item]] = []
    longest = 0.0
    for i in order:
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = seconds[i]
        batches[-1].append(items[i])
    return batches


def _attempt(load: Callable[[Item], Result], item: Item) -> Result | UtteranceError:
    try:
        return load(item)
    except UtteranceError as error:
        return error


def _cancel(futures: "Iterable[Future[Result]]") -> None:
    for future in futures:
        future.cancel()
