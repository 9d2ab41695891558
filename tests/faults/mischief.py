"""What goes wrong in workers on cue, and what they say of their work. Light: workers import it before they begin."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mvqkd.storage.table import IndexTable
from mvqkd.workers.shard import Shard


@dataclass(frozen=True, kw_only=True)
class Mischief:
    """What goes wrong in the workers of a run.

    Attributes:
        folder: remembers what has happened already, over all processes.
        faults: by the position of a shard, what happens while it is worked on:
            kill: once, after its first batch, the process is killed. deadly: the same every time.
            kill_after_put: once, when it was committed and nobody knows yet.
            hang: once, it never comes to an end. raise: once, an error. term: once, SIGTERM; the work goes on.
        or_later: what could not be killed after its commit, because another fault took the worker or the answer first,
            is made up for after the commit of a later shard.
        slow_s: how long each batch takes.
        environment: variables of the workers; None takes one away.
        clock_s: how much the clock of the workers is wrong.
    """

    folder: Path
    faults: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    or_later: bool = False
    slow_s: float = 0.0
    environment: Mapping[str, str | None] = field(default_factory=dict)
    clock_s: float = 0.0

    def begin(self) -> None:
        """In the process of a worker, before it is built."""
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.clock_s:
            put_clock_wrong(self.clock_s)

    def computes(self, shard: Shard, *, committed: bool) -> None:
        """A worker begins to compute a shard, which was in the table or not when it was given it."""
        with (self.folder / "log").open("a") as file:
            file.write(f"{shard.position} {'committed' if committed else 'new'}\n")

    def strike(self, shard: Shard) -> None:
        """A batch of a shard is done."""
        time.sleep(self.slow_s)
        if self._once("kill", shard.position) or "deadly" in self.faults.get(shard.position, ()):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._once("term", shard.position):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # this thread is not the one that hears it
        if self._once("raise", shard.position):
            raise RuntimeError("mischief")
        while self._once("hang", shard.position):
            time.sleep(3600)

    def strike_after_put(self, shard: Shard) -> None:
        """A shard was committed."""
        last = shard.position
        for position in range(0 if self.or_later else last, last + 1):
            if self._once("kill_after_put", position):
                os.kill(os.getpid(), signal.SIGKILL)

    def computed(self) -> list[int]:
        """Positions of the shards that were computed, as often as they were; none was in the table then."""
        file = self.folder / "log"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        assert not [position for position, state in lines if state == "committed"], "computed again"
        return [int(position) for position, _ in lines]

    def met(self, kind: str) -> int:
        """How many shards a fault has struck."""
        return len(list(self.folder.glob(f"{kind}-*")))

    def _once(self, kind: str, position: int) -> bool:
        if kind not in self.faults.get(position, ()):
            return False
        try:
            (self.folder / f"{kind}-{position}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def is_committed(shard: Shard, table: IndexTable) -> bool:
    """Asked by the tests themselves, whatever the worker finds."""
    return table.is_committed(shard.name(table.contract.digest()))


def put_clock_wrong(seconds: float) -> None:
    """Shift what this process takes for the time, also the time that requests to S3 are signed with."""
    import datetime

    import botocore.auth

    now, utc_now = time.time, botocore.auth.get_current_datetime
    time.time = lambda: now() + seconds
    botocore.auth.get_current_datetime = lambda **options: (
        utc_now(**options) + datetime.timedelta(seconds=seconds)
    )
