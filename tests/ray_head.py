"""A Ray head of one's own for a test: `ray start --head` with token authentication, on ports that are free.

Ray's default ports are those of any other Ray on the machine: beside one, a second head's agent finds port 52365 taken
and a submitted job hears "No available agent".
"""

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SECRET = "not-to-be-seen-anywhere"
"""In the environment of the shared head, as the credentials of a real cluster are."""
START_LIMIT_S = 120.0
PORT_OPTIONS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "ray-client-server-port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
)
_WORKER_PORTS = 24
# Below the ports that systems give to outgoing connections.
_LOWEST, _HIGHEST = 12_000, 32_000


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens, on any interface."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            candidate = held.enter_context(socket.socket())
            try:
                candidate.bind(("", random.randrange(_LOWEST, _HIGHEST)))
            except OSError:
                continue
            ports.append(candidate.getsockname()[1])
    return ports


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """A head that runs: its ports by the options of `ray start`, and what a process needs in its environment to
    reach it."""

    ports: dict[str, int]
    process: int
    environment: dict[str, str] = field(repr=False)

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"


@contextmanager
def ray_head(*, num_cpus: int, extra: dict[str, str] | None = None) -> Iterator[RayHead]:
    """Run a head with a token of its own; all its processes are killed at the end.

    Args:
        num_cpus: that it has.
        extra: environment of the head and its workers.
    """
    chosen = free_ports(len(PORT_OPTIONS) + _WORKER_PORTS)
    ports = dict(zip(PORT_OPTIONS, chosen, strict=False))
    # Short, for the paths of sockets. The home folder holds no token.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rh", ignore_cleanup_errors=True) as folder:
        scripts = Path(sys.executable).parent
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": folder,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # All on the loopback interface, and none for metrics, as in `local_environment`.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_enable_metrics_collection": "0",
            "AUTOSCALER_METRIC_PORT": "-1",
            "DASHBOARD_METRIC_PORT": "-1",
            **(extra or {}),
        }
        command = [
            str(scripts / "ray"), "start", "--head", "--block", f"--num-cpus={num_cpus}", "--num-gpus=0",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/r",
            *(f"--{option}={port}" for option, port in ports.items()),
            f"--worker-port-list={','.join(map(str, chosen[len(PORT_OPTIONS):]))}",
            "--object-store-memory=100000000",
        ]  # fmt: skip
        log = Path(folder) / "start.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        head = RayHead(ports=ports, process=process.pid, environment=environment)
        try:
            _wait_until_ready(process, head, log)
            yield head
        finally:
            end(process.pid)
            process.wait()


@pytest.fixture(scope="session")
def head() -> Iterator[RayHead]:
    """One head for all tests that submit to it or knock at its doors."""
    environment = {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "PYTHONPATH": os.fspath(REPOSITORY),
    }
    with ray_head(num_cpus=2, extra=environment) as head:
        yield head


def _wait_until_ready(process: subprocess.Popen[bytes], head: RayHead, log: Path) -> None:
    """Ready: the dashboard has an agent to which it can give a job."""
    token = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    urls = [
        f"{head.dashboard}/api/jobs/",
        f"http://127.0.0.1:{head.ports['dashboard-agent-listen-port']}/api/local_raylet_healthz",
    ]
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the head ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        if all(_answers(url, token) for url in urls):
            return
        time.sleep(0.1)
    raise TimeoutError(f"the head was not ready in time:\n{log.read_text()[-3000:]}")


def _answers(url: str, headers: dict[str, str]) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def descendants(process: int) -> list[int]:
    """A process and all that it started, as far as they are still below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            children.setdefault(parent, []).append(int(folder.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def end(process: int) -> None:
    """Kill a process and all below it: the parents are stopped first, so that none starts another."""
    for sent in (signal.SIGSTOP, signal.SIGKILL):
        for one in descendants(process):
            try:
                os.kill(one, sent)
            except ProcessLookupError:
                continue
