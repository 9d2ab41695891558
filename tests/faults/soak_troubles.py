"""What happens to the commands, the machines and the store of a soak, and the memory of its processes."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults_rig import Command, Faults, Workers
from mischief import Mischief
from proxy import FaultProxy
from s3_server import S3Server

CPUS_PER_NODE = 2
MOST_COMMANDS_AT_ONCE = 2


@contextmanager
def machines() -> Iterator[Any]:
    """A Ray cluster of processes: a head without CPUs and two nodes."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=CPUS_PER_NODE)
        yield cluster
    finally:
        cluster.shutdown()


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where the results of a soak lie: in a folder, or in a bucket of a server that is reached through a proxy."""

    folder: Path
    server: S3Server | None = None
    proxy: FaultProxy | None = None

    @property
    def keys(self) -> Path:
        """The file with the key of the server."""
        return self.folder / "credentials"

    @property
    def options(self) -> dict[str, str]:
        """Of the section `storage`."""
        return {"endpoint_url": self.proxy.url, "region": "us-east-1"} if self.proxy else {}

    def root(self, name: str) -> str:
        """Of a run."""
        return f"s3://{self.server.bucket}/{name}" if self.server else str(self.folder / name / "root")

    def direct(self, faults: Faults) -> Faults:
        """The run as it is seen without the proxy."""
        return faults.with_keys("storage", endpoint_url=self.server.endpoint_url) if self.server else faults

    def write_keys(self, key: str, secret: str) -> None:
        """As a secret that is mounted is renewed: in one step."""
        new = self.keys.with_suffix(".new")
        new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        new.replace(self.keys)


class Troubles:
    """Gives the command again and again, and disturbs it: the more shards are done, the more has happened.

    Attributes:
        happened: how often each thing was done.
        num_commands: that were started.
    """

    def __init__(
        self,
        faults: Faults,
        rng: random.Random,
        *,
        total: int,
        chance: float,
        cluster: Any,
        store: Store,
        workers: Workers,
    ) -> None:
        self._faults, self._total, self._workers = faults, total, workers
        self._seen, self._cluster, self._store = store.direct(faults), cluster, store
        self._commands: list[Command] = []
        self._last_said = ""
        self.happened: Counter[str] = Counter()
        self.num_commands = 0
        kinds: dict[str, tuple[Callable[[], None], float]] = {
            "command killed": (lambda: self._end_command(signal.SIGKILL), chance / 10),
            "command asked to end": (lambda: self._end_command(signal.SIGTERM), chance / 10),
            "second command": (self._second_command, chance / 10),
            "machine lost": (self._lose_machine, chance / 10),
        }
        if store.proxy is not None:
            trouble, broken = store.proxy.trouble, ("no_answer", "half_answer", "unheard_answer")
            kinds |= {
                "store restarted": (self._restart_store, chance / 10),
                "keys changed": (self._change_keys, chance / 10),
                "SlowDown": (lambda: trouble("busy"), chance),
                "connection broken": (lambda: trouble(rng.choice(broken)), chance),
            }
        # When so many shards are in the table, this happens.
        self._schedule = sorted(
            (rng.randrange(1, total), kind)
            for kind, (_, of) in kinds.items()
            for _ in range(max(1, round(of * total)))
        )
        self._do = {kind: do for kind, (do, _) in kinds.items()}

    def num_missing(self) -> int:
        """Shards that are not in the table."""
        return self._total - len(self._seen.committed())

    def until_done(self, mischief: Mischief) -> None:
        """Until a command ends by itself and only what cannot be done is left."""
        while True:
            self._start(mischief)
            codes = self._work(mischief)
            assert codes <= {0, 2, 3, 143, -signal.SIGKILL}, codes
            if codes <= {0, 3} and not self._schedule_left():
                return

    def finish(self, mischief: Mischief) -> None:
        """The last command, which nothing disturbs: not even what waited for the shards that were set aside."""
        self._schedule.clear()
        self._start(mischief)
        (code,) = self._work(mischief)
        assert code == 0 and not self.num_missing(), (code, self.num_missing(), self._last_said[-4000:])

    def _start(self, mischief: Mischief) -> None:
        self.num_commands += 1
        self._mischief = mischief
        self._commands.append(self._faults.start(mischief, workers=self._workers))

    def _work(self, mischief: Mischief) -> set[int]:
        """Until all commands have ended; their exit codes."""
        codes: set[int] = set()
        while self._commands:
            done = self._total - self.num_missing()
            while self._schedule and self._schedule[0][0] <= done and self._commands:
                _, kind = self._schedule.pop(0)
                self._do[kind]()
                self.happened[kind] += 1
            for command in [c for c in self._commands if c.poll() is not None]:
                _, said = command.communicate()
                self._last_said = said
                self._commands.remove(command)
                codes.add(command.returncode)
                assert "Traceback" not in said, said
            time.sleep(0.1)
        return codes

    def _schedule_left(self) -> bool:
        """Whether something is to come that can: what waits for shards that are set aside never does."""
        done = self._total - self.num_missing()
        return any(at <= done for at, _ in self._schedule)

    def _end_command(self, sent: signal.Signals) -> None:
        self._commands[0].send_signal(sent)

    def _second_command(self) -> None:
        if len(self._commands) < MOST_COMMANDS_AT_ONCE:
            self._start(self._mischief)

    def _lose_machine(self) -> None:
        self._cluster.remove_node(next(iter(self._cluster.worker_nodes)), allow_graceful=False)
        self._cluster.add_node(num_cpus=CPUS_PER_NODE, wait=False)

    def _restart_store(self) -> None:
        assert self._store.server is not None
        self._store.server.kill()
        self._store.server.start()

    def _change_keys(self) -> None:
        assert self._store.server is not None
        key = f"key{self.happened['keys changed']}"
        self._store.server.accept(key, f"secret-of-{key}")
        self._store.write_keys(key, f"secret-of-{key}")


class Memory:
    """Resident memory of a command and its workers, as the work goes on."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._seen: list[
            tuple[int, float, float]
        ] = []  # shards done, MB of the command, MB of its largest worker

    def look(self, num_done: int) -> None:
        """Now."""
        workers = [_resident_mb(process) for process in _actors()]
        self._seen.append((num_done, _resident_mb(self._process), max(workers, default=0.0)))

    def report(self) -> dict[str, Any]:
        """At a quarter, half and the end of the shards."""
        last = max(done for done, _, _ in self._seen)
        report = {}
        for name, share in (("quarter", 0.25), ("half", 0.5), ("end", 1.0)):
            done, command, worker = next(
                row for row in self._seen if (row[0] >= share * last and row[2] > 0) or row is self._seen[-1]
            )
            report[name] = {"shards": done, "command_mb": command, "worker_mb": worker}
        return report


def _actors() -> list[int]:
    """Worker processes that are called as the workers of these tests."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # ended meanwhile
            if title.startswith((b"ray::RealActor", b"ray::LightActor")):
                found.append(int(folder.name))
    return found


def _resident_mb(process: int) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
