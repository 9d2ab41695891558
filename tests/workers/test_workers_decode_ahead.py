"""Decoding ahead: the order, how far ahead, and where errors show; batches by length."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import decode_ahead, decoded_batches, drawn_ahead, length_sorted_batches


def test_decoding_keeps_the_order_and_looks_ahead() -> None:
    started: list[int] = []

    def slow_first(item: int) -> int:
        started.append(item)
        time.sleep(0.05 if item == 0 else 0)
        return item * 10

    stream = decode_ahead(range(100), slow_first, threads=4, ahead=8)
    assert next(stream) == 0
    assert len(started) <= 9
    assert list(stream) == [item * 10 for item in range(1, 100)]


def test_decoding_runs_in_other_threads() -> None:
    names = list(decode_ahead(range(8), lambda _: threading.current_thread().name, threads=2, ahead=4))
    assert all(isinstance(name, str) and name.startswith("decode") for name in names)


def test_bad_audio_stands_in_its_place_and_other_errors_are_raised() -> None:
    def decode(item: int) -> int:
        if item == 2:
            raise UtteranceError("two", "bad")
        if item == 4:
            raise ZeroDivisionError("a bug")
        return item

    stream = decode_ahead(range(6), decode, threads=2, ahead=3)
    assert [next(stream), next(stream)] == [0, 1]
    error = next(stream)
    assert isinstance(error, UtteranceError) and error.cut_id == "two"
    assert next(stream) == 3
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(stream)


def test_batches_are_bounded_by_padded_seconds() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0.5, 12.0, 200).tolist()
    batches = length_sorted_batches(range(200), seconds, batch_seconds=40.0)
    assert sorted(item for batch in batches for item in batch) == list(range(200))
    assert all(len(batch) * max(seconds[item] for item in batch) <= 40.0 for batch in batches)
    assert len(batches) < sum(seconds) / 40.0 * 1.3
    assert max(seconds) == seconds[batches[0][0]]


def test_long_item_makes_a_batch_of_its_own() -> None:
    assert length_sorted_batches(["a", "b", "c"], [1.0, 100.0, 1.0], batch_seconds=4.0) == [["b"], ["a", "c"]]
    assert length_sorted_batches([], [], batch_seconds=4.0) == []


def test_batches_come_whole_and_two_more_are_decoded_ahead() -> None:
    """Of long items few are held, of short ones many: what counts are batches."""
    started: list[int] = []
    drawn: list[int] = []

    def batches() -> Iterator[list[int]]:
        for number, batch in enumerate([[0], [], [1, 2], [3, 4, 5, 6], [7], [8, 9]]):
            drawn.append(number)
            yield batch

    def decode(item: int) -> int:
        started.append(item)
        return item * 10

    stream = decoded_batches(batches(), decode, threads=1)
    assert next(stream) == [0]
    time.sleep(0.05)
    assert started == [0, 1, 2] and drawn == [0, 1, 2]
    assert next(stream) == []
    time.sleep(0.05)
    assert started == [0, 1, 2, 3, 4, 5, 6]
    assert list(stream) == [[10, 20], [30, 40, 50, 60], [70], [80, 90]]
    assert list(decoded_batches([], decode, threads=1)) == []


def test_bad_audio_stands_in_its_place_in_a_batch_and_other_errors_are_raised() -> None:
    def decode(item: int) -> int:
        if item == 1:
            raise UtteranceError("one", "bad")
        if item == 5:
            raise ZeroDivisionError("a bug")
        return item

    stream = decoded_batches([[0, 1, 2], [3], [4, 5], [6]], decode, threads=2)
    first = next(stream)
    assert (
        [first[0], first[2]] == [0, 2] and isinstance(first[1], UtteranceError) and first[1].cut_id == "one"
    )
    assert next(stream) == [3]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(stream)


def test_closing_drops_what_has_not_begun() -> None:
    started: list[int] = []
    hold = threading.Event()

    def decode(item: int) -> int:
        started.append(item)
        if item == 1:
            hold.wait(10)
        return item

    stream = decoded_batches([[0], [1, 2, 3], [4, 5]], decode, threads=1)
    assert next(stream) == [0]
    while len(started) < 2:
        time.sleep(0.001)
    threading.Timer(0.05, hold.set).start()
    stream.close()
    assert started == [0, 1]


def test_items_are_drawn_ahead_in_one_thread() -> None:
    drawn: list[int] = []
    names: set[str] = set()

    def items() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            names.add(threading.current_thread().name)
            yield number
        raise ZeroDivisionError("a bug")

    stream = drawn_ahead(items(), ahead=4)
    assert next(stream) == 0
    until = time.monotonic() + 10
    while len(drawn) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    assert drawn == [0, 1, 2, 3, 4], "and no further"
    assert [next(stream) for _ in range(19)] == list(range(1, 20))
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert len(names) == 1 and names.pop().startswith("draw")


def test_items_are_not_drawn_after_the_end_nor_after_closing() -> None:
    assert list(drawn_ahead(range(3), ahead=8)) == [0, 1, 2]
    assert list(drawn_ahead([], ahead=2)) == []
    source = iter(range(100))
    stream = drawn_ahead(source, ahead=4)
    assert [next(stream), next(stream)] == [0, 1]
    stream.close()
    assert next(source) <= 7
