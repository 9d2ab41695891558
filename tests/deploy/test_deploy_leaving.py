"""A node that is taken away: the notice of EC2 is seen, Ray is told, and the workers are asked to go."""

import http.server
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "metadata-token"


class _Metadata(http.server.BaseHTTPRequestHandler):
    """As EC2's metadata service of version 2: a token first, and 404 as long as there is no notice."""

    asked = 0

    def do_PUT(self) -> None:
        right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if right else 400, TOKEN)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "")
            return
        type(self).asked += 1
        notice = self.path == "/latest/meta-data/spot/instance-action" and self.asked > 2
        self._answer(200 if notice else 404, '{"action": "terminate"}')

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def metadata_url() -> Iterator[str]:
    _Metadata.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the commands that were called; a worker is there until it was looked for twice."""
    file = tmp_path / "calls"
    commands = {
        "python": "echo 192.0.2.10:6379 a1b2c3",
        "ray": "",
        "pkill": "",
        "sleep": "",
        "pgrep": f'[ "$(grep -c ^pgrep {file})" -lt 3 ]',
    }
    for name, does in commands.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\necho "{name}" $* >>{file}\n{does}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return file


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        ["bash", str(REPOSITORY / "deploy" / script), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(calls: Path) -> list[str]:
    return [line.split()[0] for line in calls.read_text().splitlines()]


def test_ray_hears_first_then_the_workers_and_the_node_waits_for_them(calls: Path) -> None:
    assert "left with node a1b2c3" in run("leave_node.sh", "110")
    assert names(calls)[:3] == ["python", "ray", "pkill"]
    drain = calls.read_text().splitlines()
    (line,) = (line for line in drain if line.startswith("ray "))
    assert "drain-node --address 192.0.2.10:6379 --node-id a1b2c3" in line
    assert "DRAIN_NODE_REASON_PREEMPTION" in line and "--deadline-remaining-seconds 110" in line
    assert names(calls).count("pgrep") == 3


def test_a_worker_that_stays_is_not_waited_for_longer_than_there_is_time(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "pgrep").write_text("#!/bin/sh\nexit 0\n")
    run("leave_node.sh", "15")
    assert names(calls).count("sleep") == 5, "ten seconds are the node's own"


def test_ray_has_the_command_and_the_reason() -> None:
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    from ray.runtime_context import RuntimeContext
    from ray.scripts.scripts import drain_node

    assert DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION") != 0
    assert hasattr(RuntimeContext, "gcs_address") and hasattr(RuntimeContext, "get_node_id")
    options = {name for option in drain_node.params for name in option.opts}
    assert {
        "--address",
        "--node-id",
        "--reason",
        "--reason-message",
        "--deadline-remaining-seconds",
    } <= options


def test_the_notice_of_ec2_is_waited_for_with_a_token(
    calls: Path, metadata_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METADATA_URL", metadata_url)
    assert '{"action": "terminate"}' in run("aws/spot_notice.sh")
    assert names(calls)[:2] == ["sleep", "sleep"], "twice there was none"
    assert "drain-node" in calls.read_text()
