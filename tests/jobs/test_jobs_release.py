"""What the pool holds of a cluster: more workers than fit are demand, and in the end nothing is held."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from mvqkd.pipeline.cluster.actors import actor_of
from mvqkd.pipeline.cluster.connect import start_board
from mvqkd.pipeline.cluster.dispatch import Dispatcher

pytestmark = pytest.mark.integration


@dataclass(frozen=True, kw_only=True)
class HeldSettings:
    """Of a worker that holds its item until `folder/go` is there, and dies of the item `die` once."""

    folder: Path

    def build(self) -> "Held":
        return Held(self.folder)


class Held:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, item: str, *, last_attempt: bool, note: Callable[[dict[str, Any]], None]) -> str:
        (self._folder / item).touch()
        while not (self._folder / "go").exists():
            time.sleep(0.02)
        if item == "die" and not (self._folder / "died").exists():
            (self._folder / "died").touch()

            os._exit(1)
        return item


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def test_surplus_workers_wait_and_all_are_given_back(ray_session: None, tmp_path: Path) -> None:
    wait_for(lambda: free_cpus() == 2)  # of tests before this one
    settings, board = HeldSettings(folder=tmp_path), start_board()
    actor = actor_of(settings, cpus=1, gpus=0)
    waiting: list[tuple[int, int]] = []

    def look() -> None:
        waiting.append((len(dispatcher._booting), len(dispatcher._hands)))
        if len(dispatcher._hands) == 2:
            (tmp_path / "go").touch()

    dispatcher = Dispatcher(spawn=lambda: actor.remote(settings, board), workers=4, on_poll=look)
    outcomes = list(dispatcher.run(["die", "a", "b", "c"]))
    assert [outcome.failed for outcome in outcomes] == [False] * 4
    # Two that fit had work and two stood in line: what an autoscaler sees as demand.
    assert (2, 2) in waiting
    wait_for(lambda: free_cpus() == 2)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
