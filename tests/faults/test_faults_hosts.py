"""A head without CPUs and two workers that see no common disk, and an S3 server that all reach."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults_rig import PATHS, TESTS, Rig, write_tree
from hosts import HERE, Host, hosts, network, until, wait_for_word, why_not
from s3_server import S3Server, running_s3_server
from tiny import Done, copy_of, make_run, objects

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.environ.get("MVQKD_TEST_HOSTS") != "1",
        reason="three Rays of their own take minutes: `make hosts` runs this",
    ),
]

BIN = Path(sys.executable).parent


@dataclass(kw_only=True)
class Machines:
    """The hosts, the head first, and what they need to know."""

    hosts: list[Host]
    environment: dict[str, str]
    server: S3Server
    own: Path

    def command(self, *words: str) -> tuple[int, str]:
        """A command of the user's, on the head; its exit code and what it said."""
        process = self.hosts[0].start([str(BIN / "python"), *words], self.environment)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def join(self, host: Host) -> subprocess.Popen[str]:
        """Start Ray on a worker, and wait until it belongs to the cluster."""
        return self._ray(host, "--address", f"{self.hosts[0].address}:6379", "--num-cpus", "2")

    def lead(self) -> subprocess.Popen[str]:
        """Start Ray on the head."""
        folders = ("--temp-dir", str(self.own / "ray"), "--include-dashboard", "false")
        return self._ray(self.hosts[0], "--head", "--port", "6379", "--num-cpus", "0", *folders)

    def _ray(self, host: Host, *words: str) -> subprocess.Popen[str]:
        ray = [str(BIN / "ray"), "start", "--block", "--node-ip-address", host.address, *words]
        process = host.start(ray, self.environment)
        wait_for_word(process, "This command will now block")
        return process


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    problem = why_not()
    if problem:
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("hosts")
    own = Path(f"/tmp/mvq{os.getpid()}")  # short, for Ray's sockets
    own.mkdir()
    try:
        with (
            network() as bridge,
            running_s3_server(folder / "server", address=HERE) as server,
            hosts(bridge, ["head", "worker-a", "worker-b"], private=[own]) as all_hosts,
        ):
            environment = {
                **{n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "RAY_"))},
                **server.environment,
                "PYTHONPATH": os.pathsep.join(str(TESTS / folder) for folder in PATHS),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_TMPDIR": str(own),
                "RAY_health_check_initial_delay_ms": "1000",
                "RAY_health_check_period_ms": "1000",
                "RAY_health_check_timeout_ms": "5000",
                "RAY_health_check_failure_threshold": "4",
                "OMP_NUM_THREADS": "1",
            }
            found = Machines(hosts=all_hosts, environment=environment, server=server, own=own)
            found.lead()
            for host in all_hosts[1:]:
                found.join(host)
            yield found
    finally:
        own.rmdir()


@pytest.fixture
def in_bucket(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, which this process reaches too."""
    for name, value in machines.server.environment.items():
        monkeypatch.setenv(name, value)
    return machines.server


def test_extract_distill_and_decode(
    machines: Machines, done: Done, tmp_path: Path, in_bucket: S3Server
) -> None:
    tree = {**done[0], "cluster": {"address": f"{machines.hosts[0].address}:6379"}}
    tree["storage"] = {"root": f"s3://{in_bucket.bucket}/whole/run"}
    for section, key in (("corpus", "root"), ("teacher", "path")):
        source = Path(tree[section][key])
        tree[section] = {**tree[section], key: f"s3://{in_bucket.bucket}/whole/{section}"}
        upload(source, f"s3://{in_bucket.bucket}/whole/{section}")
    run = make_run(tree, tmp_path)
    upload(done[1] / "quantizer", run.quantizer.url)
    run_file = str(write_tree(tree, tmp_path))
    for stage in ("plan", "extract", "distill", "decode"):
        code, said = machines.command("-m", "mvqkd", stage, run_file)
        assert code == 0, said
    undisturbed = objects(make_run(done[0], tmp_path).table)
    assert objects(run.table) == undisturbed
    assert run.reports.whole()["students"]["mvqkd"]["score"]["wer"] > 0


def test_results_in_a_folder_are_refused_before_any_work(
    machines: Machines, done: Done, tmp_path: Path
) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer")
    root = machines.own / "run"
    tree |= {"cluster": {"address": f"{machines.hosts[0].address}:6379"}, "storage": {"root": str(root)}}
    copied = machines.hosts[0].start(["cp", "-r", str(tmp_path / "run"), str(root)], machines.environment)
    assert copied.wait() == 0
    code, said = machines.command("-m", "mvqkd", "extract", str(write_tree(tree, tmp_path)))
    assert code == 2
    assert "is not seen on worker-" in said and "a local folder belongs to one machine" in said
    for host in machines.hosts[1:]:
        looked = host.start(["ls", str(machines.own)], machines.environment)
        assert "run" not in looked.communicate()[0].split()


def test_a_host_that_loses_its_link_is_replaced(
    machines: Machines, rig: Rig, tmp_path: Path, in_bucket: S3Server
) -> None:
    faults = rig.at(tmp_path, f"s3://{in_bucket.bucket}/link")
    faults = faults.with_keys("cluster", address=f"{machines.hosts[0].address}:6379")
    faults = faults.with_keys("extract", actors=4)
    mischief = faults.mischief(slow_s=0.3)
    command = machines.hosts[0].start(faults.command(mischief), machines.environment)
    until(lambda: len(faults.committed()) >= 2)
    lost = machines.hosts[2]
    lost.plug(up=False)
    said, _ = command.communicate(timeout=300)
    assert command.returncode == 0, said
    faults.check()
    # Back again; Ray has given its old process up, so the host joins anew, as its supervisor would have it do.
    lost.plug(up=True)
    machines.join(lost)
    code, said = machines.command("-m", "mvqkd", "extract", str(write_tree(faults.tree, tmp_path)))
    assert code == 0, said


def upload(folder: Path, url: str) -> None:
    from mvqkd.storage.location import open_location

    for path in sorted(folder.rglob("*")):
        if path.is_file():
            open_location(url).replace(str(path.relative_to(folder)), path.read_bytes())
