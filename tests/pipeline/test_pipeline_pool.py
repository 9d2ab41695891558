"""The pool in this process keeps the rules of the pool of Ray actors: attempts, quarantine, notes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mvqkd.pipeline.cluster import pool as pool_module
from mvqkd.pipeline.cluster.pool import Note, Outcome, PoolHere, Share, Watch
from mvqkd.pipeline.errors import PoolError

SHARE = Share(workers=2, cpus=1, gpus=0, keys="extract.cpus_per_actor")


@dataclass(kw_only=True)
class ToldSettings:
    """Of a worker that does what its item says."""

    tries: list[tuple[str, bool]] = field(default_factory=list)
    start: str = "well"

    def build(self) -> "ToldSettings":
        if self.start == "badly":
            raise OSError("no teacher here")
        return self

    def run(self, item: str, *, last_attempt: bool, note: Callable[[Note], None]) -> str:
        first = item not in [tried for tried, _ in self.tries]
        self.tries.append((item, last_attempt))
        note({"item": item})
        if item.startswith("raise") or (item.startswith("flaky") and first):
            raise ValueError(f"{item} is bad\nand a second line")
        return f"{item} done"


def run(
    items: list[str], settings: ToldSettings, **options: Any
) -> tuple[list[Outcome], list[Note], list[str]]:
    notes: list[Note] = []
    again: list[str] = []
    watch = Watch(on_notes=notes.extend, on_retry=lambda outcome: again.append(outcome.errors[-1]))
    outcomes = list(PoolHere().run(items, settings, share=SHARE, watch=watch, **options))
    return outcomes, notes, again


def test_an_item_that_fails_is_tried_again_after_the_others() -> None:
    settings = ToldSettings()
    outcomes, notes, again = run(["flaky", "good"], settings)
    assert [(o.item, o.attempts, o.result) for o in outcomes] == [
        ("good", 1, "good done"),
        ("flaky", 2, "flaky done"),
    ]
    assert again == ["ValueError: flaky is bad"]
    assert notes[-1] == {"item": "flaky"}


def test_an_item_that_never_works_is_given_back_and_the_rest_is_done() -> None:
    settings = ToldSettings()
    outcomes, _, _ = run(["raise", "good"], settings, max_attempts=2)
    assert {o.item: o.failed for o in outcomes} == {"good": False, "raise": True}
    assert settings.tries == [("raise", False), ("good", False), ("raise", True)]


def test_a_worker_that_cannot_start_ends_the_job() -> None:
    with pytest.raises(PoolError, match="OSError: no teacher here"):
        run(["item"], ToldSettings(start="badly"))


def test_an_interruption_is_not_an_attempt() -> None:
    class Interrupted(ToldSettings):
        def run(self, item: str, **_: Any) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["item"], Interrupted())


def test_notes_come_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LOOK_EVERY_S", 0.0)
    _, notes, _ = run(["a", "b"], ToldSettings())
    assert [note["item"] for note in notes] == ["a", "a", "b", "b"]
