"""The dispatcher on real Ray actors: attempts, lost actors, quarantine."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from mvqkd.pipeline.cluster.actors import remote
from mvqkd.pipeline.cluster.dispatch import Outcome, PoolError, dispatch

pytestmark = pytest.mark.integration


class Worker:
    """Does what its item says; `folder` remembers what happened before."""

    def __init__(self, folder: Path, start: str = "well") -> None:
        if start == "badly":
            raise RuntimeError("no teacher here")
        self._folder = folder

    def run(self, item: str, *, attempt: int) -> str:
        with (self._folder / item).open("a") as file:
            file.write(f"{attempt}\n")
        if item.startswith("raise") or (item.startswith("flaky") and attempt == 1):
            raise ValueError(f"{item} is bad")
        if item.startswith("die") or (item.startswith("kill") and attempt == 1):
            os._exit(1)
        if item.startswith("hang") and attempt == 1:
            time.sleep(60)
        return f"{item} done"


@pytest.fixture
def work(ray_session: None, tmp_path: Path) -> Any:
    actor = remote(Worker, cpus=1, gpus=0)

    def run(items: list[str], **options: Any) -> dict[str, Outcome]:
        options = {"pool": 2, **options}
        outcomes = list(dispatch(items, lambda: actor.remote(tmp_path), **options))
        assert len(outcomes) == len(items)
        return {outcome.item: outcome for outcome in outcomes}

    return run


def test_every_item_is_done_once(work: Any, tmp_path: Path) -> None:
    outcomes = work([f"item-{n}" for n in range(12)])
    assert all(o.result == f"{o.item} done" and o.attempts == 1 and not o.failed for o in outcomes.values())
    assert all(path.read_text() == "1\n" for path in tmp_path.iterdir())


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
    assert (tmp_path / "die-1").read_text() == "1\n2\n"
    assert outcomes["raise-1"].errors == ["ValueError: raise-1 is bad"] * 2
    assert "ActorDied" in outcomes["die-1"].errors[0]


def test_an_item_over_its_time_loses_its_worker(work: Any) -> None:
    outcomes = work(["hang-1"], timeout_s=2.0)
    assert (outcomes["hang-1"].attempts, outcomes["hang-1"].failed) == (2, False)


def test_workers_that_cannot_start_end_the_job(ray_session: None, tmp_path: Path) -> None:
    actor = remote(Worker, cpus=1, gpus=0)
    with pytest.raises(PoolError, match="no teacher here"):
        list(dispatch(["item"], lambda: actor.remote(tmp_path, "badly"), pool=1, max_failed_starts=1))
