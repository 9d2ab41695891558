"""Hosts that share nothing but a network: namespaces of Linux with a link each, a disk of their own and nobody else's
processes. Made and removed by root alone.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.213.77"
HERE = f"{NETWORK}.254"


@dataclass(frozen=True, kw_only=True)
class Host:
    """One of them.

    Attributes:
        name: of the host. address: on the network.
        process: the first process of its namespaces; it ends, and all ends.
        link: its end of the cable that is plugged into the bridge.
    """

    name: str
    address: str
    process: int
    link: str

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Run a command there."""
        enter = ["nsenter", "--target", str(self.process), "--net", "--mount", "--pid", "--uts", "--"]
        return subprocess.Popen(
            [*enter, *command],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def plug(self, up: bool) -> None:
        """Pull the plug of its cable, or put it in again."""
        ip("link", "set", self.link, "up" if up else "down")


def why_not() -> str | None:
    """Why there can be no such hosts here; None where there can."""
    if os.geteuid():
        return "namespaces and links are for root alone"
    probe = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "true"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no namespaces: {done.stderr.strip()}"
        # A name that nobody has, since what is there may be somebody's.
        bridge = f"mvq{os.getpid()}"
        done = subprocess.run(
            ["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"no bridge: {done.stderr.strip()}"
        ip("link", "del", bridge)
    except FileNotFoundError as error:
        return f"no program {error.filename}"
    return None


@contextmanager
def network() -> Iterator[str]:
    """A bridge of which this process's own end is `HERE`; its name."""
    bridge = f"mvqb{os.getpid()}"
    ip("link", "add", bridge, "type", "bridge")
    try:
        ip("addr", "add", f"{HERE}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        yield bridge
    finally:
        ip("link", "del", bridge)


@contextmanager
def hosts(bridge: str, names: Sequence[str], *, private: Sequence[Path]) -> Iterator[list[Host]]:
    """Hosts on the bridge; the folders `private` are an empty disk of its own on each."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_host(bridge, name, number, private)) for number, name in enumerate(names, 1)
        ]


@contextmanager
def _host(bridge: str, name: str, number: int, private: Sequence[Path]) -> Iterator[Host]:
    mounts = " && ".join(f"mount -t tmpfs tmpfs '{folder}'" for folder in private)
    first = f"{mounts} && echo {name} >/proc/sys/kernel/hostname && echo ready && exec sleep infinity"
    namespaces = ["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["unshare", *namespaces, "--propagation", "private", "sh", "-c", first],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    outside, inside = f"mvq{os.getpid()}x{number}", f"mvq{os.getpid()}y{number}"
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        ip("link", "set", inside, "netns", child)
        ip("link", "set", outside, "master", bridge, "up")
        enter = ["nsenter", "--target", child, "--net", "ip"]
        address = f"{NETWORK}.{number}"
        for words in (
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{address}/24", "dev", inside],
            ["link", "set", inside, "up"],
        ):
            subprocess.run([*enter, *words], check=True)
        yield Host(name=name, address=address, process=int(child), link=outside)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # and with its first process all others of the host
        process.wait()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def wait_for_word(process: subprocess.Popen[str], word: str) -> None:
    """Until a process has said this."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if word in line:
            return
    raise AssertionError(f"{process.args} ended: {''.join(said)}")


def until(condition: object, *, within_s: float = 200.0) -> None:
    """Wait for a condition, a function without arguments."""
    assert callable(condition)
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
