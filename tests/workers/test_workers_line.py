"""First come, first served."""

import threading

from mvqkd.workers.line import Line


def test_one_at_a_time_in_the_order_of_arrival() -> None:
    line, order, inside = Line(), [], []
    arrived = [threading.Event() for _ in range(6)]
    begin = threading.Event()

    def work(number: int) -> None:
        with line.place() as my_turn:
            arrived[number].set()
            begin.wait(10)
            my_turn()
            inside.append(number)
            assert len(inside) == 1
            order.append(number)
            inside.clear()

    threads = []
    for number in range(6):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        assert arrived[number].wait(10)
    begin.set()
    for thread in threads:
        thread.join(10)
    assert order == list(range(6))


def test_who_leaves_before_its_turn_makes_room() -> None:
    line = Line()
    with line.place() as first:
        first()
        try:
            with line.place():
                raise KeyError("given up")
        except KeyError:
            pass
        waits = threading.Thread(target=lambda: _take(line))
        waits.start()
    waits.join(10)
    assert not waits.is_alive()


def _take(line: Line) -> None:
    with line.place() as my_turn:
        my_turn()
