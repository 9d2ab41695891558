"""The dispatcher on real Ray actors: attempts, lost actors, quarantine."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mvqkd.pipeline.cluster.actors import actor_of
from mvqkd.pipeline.cluster.connect import read_board, start_board
from mvqkd.pipeline.cluster.dispatch import Dispatcher
from mvqkd.pipeline.cluster.hand import Deadline
from mvqkd.pipeline.cluster.pool import Outcome
from mvqkd.pipeline.errors import PoolError

pytestmark = pytest.mark.integration


@dataclass(frozen=True, kw_only=True)
class ToldSettings:
    """Of a worker that does what its item says; `folder` remembers what happened before."""

    folder: Path
    start: str = "well"

    def build(self) -> "Told":
        if self.start == "badly":
            raise RuntimeError("no teacher here")
        return Told(self.folder)


class Told:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, item: str, *, last_attempt: bool, note: Callable[[dict[str, Any]], None]) -> str:
        path = self._folder / item
        first = not path.exists()
        with path.open("a") as file:
            file.write("last\n" if last_attempt else "more\n")
        note({"item": item})
        if item.startswith("raise") or (item.startswith("flaky") and first):
            raise ValueError(f"{item} is bad")
        if item.startswith("die") or (item.startswith("kill") and first):
            os._exit(1)
        if item.startswith("hang") and first:
            time.sleep(60)
        return f"{item} done"


@pytest.fixture
def work(ray_session: None, tmp_path: Path) -> Any:
    settings = ToldSettings(folder=tmp_path)
    actor = actor_of(settings, cpus=1, gpus=0)
    board = start_board()

    def run(items: list[str], **options: Any) -> dict[str, Outcome]:
        dispatcher = Dispatcher(spawn=lambda: actor.remote(settings, board), **{"workers": 2, **options})
        outcomes = list(dispatcher.run(items))
        assert len(outcomes) == len(items)
        assert read_board(board)
        return {outcome.item: outcome for outcome in outcomes}

    return run


def test_every_item_is_done_once(work: Any, tmp_path: Path) -> None:
    outcomes = work([f"item-{n}" for n in range(12)])
    assert all(o.result == f"{o.item} done" and o.attempts == 1 and not o.failed for o in outcomes.values())
    assert all(path.read_text() == "more\n" for path in tmp_path.iterdir())


def test_lost_and_raising_workers_cost_their_item_one_attempt(work: Any) -> None:
    tried_again: list[str] = []
    outcomes = work(
        ["kill-1", "flaky-1", "item-1"], on_retry=lambda o: tried_again.append(f"{o.item}: {o.errors[-1]}")
    )
    assert len(tried_again) == 2 and "flaky-1: ValueError: flaky-1 is bad" in tried_again
    assert not any(o.failed for o in outcomes.values())
    assert {o.item: o.attempts for o in outcomes.values()} == {"kill-1": 2, "flaky-1": 2, "item-1": 1}
    assert outcomes["flaky-1"].errors == ["ValueError: flaky-1 is bad"]


def test_items_that_never_work_are_given_back_and_the_rest_is_done(work: Any, tmp_path: Path) -> None:
    outcomes = work(["die-1", "raise-1", "item-1", "item-2"], max_attempts=2)
    assert {name for name, o in outcomes.items() if o.failed} == {"die-1", "raise-1"}
    assert (tmp_path / "die-1").read_text() == "more\nlast\n"
    assert outcomes["raise-1"].errors == ["ValueError: raise-1 is bad"] * 2
    assert "ActorDied" in outcomes["die-1"].errors[0]


def test_an_item_over_its_time_loses_its_worker(work: Any) -> None:
    outcomes = work(["hang-1"], deadline=Deadline(1.0))
    assert (outcomes["hang-1"].attempts, outcomes["hang-1"].failed) == (2, False)


def test_workers_that_cannot_start_end_the_job(ray_session: None, tmp_path: Path) -> None:
    settings = ToldSettings(folder=tmp_path, start="badly")
    actor, board = actor_of(settings, cpus=1, gpus=0), start_board()
    dispatcher = Dispatcher(spawn=lambda: actor.remote(settings, board), workers=1, max_failed_starts=1)
    with pytest.raises(PoolError, match="no teacher here"):
        list(dispatcher.run(["item"]))
