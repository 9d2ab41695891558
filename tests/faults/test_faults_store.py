"""What happens to the store: restarted, throttled, cut off, full, keys that expire. No shard is charged for it: all of
these runs allow one attempt.
"""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from faults_rig import Faults, Rig
from mischief import Mischief
from proxy import fault_proxy
from s3_server import S3Server, running_s3_server
from small_disk import small_disk

from mvqkd.pipeline.cluster import outage
from mvqkd.pipeline.errors import PoolError
from mvqkd.storage.location import open_location

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """A server of one's own, to kill and to change."""
    with running_s3_server(tmp_path / "server") as server:
        yield server


@pytest.fixture
def own_s3(rig: Rig, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Faults:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return rig.at(tmp_path / "run", f"s3://{server.bucket}/run")


def one_attempt(faults: Faults) -> Faults:
    return faults.with_keys("extract", max_attempts=1)


def while_at_work(faults: Faults, mischief: Mischief, disturb: Callable[[], None]) -> dict[str, Any]:
    """Do something to the store once two shards were begun, and wait for the end of the extraction."""
    with ThreadPoolExecutor(1) as executor:
        work: Future[dict[str, Any]] = executor.submit(one_attempt(faults).extract, mischief)
        while len(mischief.computed()) < 2 and not work.done():
            time.sleep(0.01)
        disturb()
        return work.result()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Whether the pool has heard of an outage."""
    event, by_pool = threading.Event(), outage.Outage.seen

    def told(self: outage.Outage, error: str) -> None:
        event.set()
        by_pool(self, error)

    monkeypatch.setattr(outage.Outage, "seen", told)
    return event


def test_the_server_is_killed_and_started_again(own_s3: Faults, server: S3Server) -> None:
    mischief = own_s3.mischief(slow_s=0.05, environment=server.environment)

    def restart() -> None:
        server.kill()
        server.start()

    assert while_at_work(own_s3, mischief, restart)["shards_failed"] == 0
    own_s3.check()


def test_slow_down_and_connections_that_break_off(on_s3: Faults, s3_environment: S3Server) -> None:
    with fault_proxy(s3_environment.endpoint_url) as proxy:
        faults = on_s3.with_keys("storage", endpoint_url=proxy.url)
        mischief = faults.mischief(environment={"AWS_ENDPOINT_URL": None})

        def trouble() -> None:
            proxy.trouble(*("busy", "no_answer", "half_answer", "unheard_answer", "busy", "none") * 4)

        assert while_at_work(faults, mischief, trouble)["shards_failed"] == 0
        assert proxy.is_quiet and proxy.seen["busy"] == 8
        mischief.computed()
    on_s3.check()


def test_a_store_that_is_away_for_long_ends_the_run_and_no_shard(
    on_s3: Faults, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "PATIENCE_S", 0.5)
    mischief = on_s3.mischief(environment={"AWS_SECRET_ACCESS_KEY": "of-yesterday"})
    with pytest.raises(
        PoolError, match=r"nothing could be done: .*refused the credentials.*the same command"
    ):
        one_attempt(on_s3).extract(mischief)
    assert one_attempt(on_s3).extract(on_s3.mischief())["shards_extracted"] == on_s3.rig.num_shards
    on_s3.check()


@contextmanager
def keys_that_expire(server: S3Server) -> Iterator[tuple[str, Callable[[str, str], None]]]:
    """The service that gives pods and tasks their keys (EKS, ECS), each good for a moment; its url, and what changes
    the key that it gives."""
    current = [server.key, server.secret]

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            until = datetime.now(UTC) + timedelta(seconds=2)
            names = ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
            values = (*current, "", until.strftime("%Y-%m-%dT%H:%M:%SZ"))
            content = json.dumps(dict(zip(names, values, strict=True))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    def change(key: str, secret: str) -> None:
        current[:] = [key, secret]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}/keys", change
        service.shutdown()


NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}


def test_keys_of_a_service_that_expire_and_are_renewed(
    own_s3: Faults, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with keys_that_expire(server) as (url, change):
        keys = {**NO_KEYS, "AWS_CONTAINER_CREDENTIALS_FULL_URI": url, "AWS_ENDPOINT_URL": server.endpoint_url}
        for name, value in keys.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)

        def renew() -> None:
            change("second", "secret-of-second")
            server.accept("second", "secret-of-second")

        mischief = own_s3.mischief(slow_s=0.1, environment=keys)
        assert while_at_work(own_s3, mischief, renew)["shards_failed"] == 0
        own_s3.check()


def test_keys_of_a_program_that_expire_and_are_renewed(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`credential_process`, as single sign-on has it."""
    keys, config = tmp_path / "keys.json", tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = cat {keys}\n")

    def write(key: str, secret: str) -> None:
        until = (datetime.now(UTC) + timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
        content = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret, "Expiration": until}
        keys.write_text(json.dumps(content))

    write(server.key, server.secret)
    for name in NO_KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    location = open_location(f"s3://{server.bucket}/x", options={"endpoint_url": server.endpoint_url})
    location.replace("a", b"1")
    server.accept("second", "secret-of-second")
    write("second", "secret-of-second")
    assert location.read_bytes("a") == b"1"


def test_keys_in_a_file_that_is_written_anew(
    own_s3: Faults,
    server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: threading.Event,
) -> None:
    file = tmp_path / "credentials"
    keys = {**NO_KEYS, "AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_ENDPOINT_URL": server.endpoint_url}

    def write(key: str, secret: str) -> None:
        new = file.with_suffix(".new")
        new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        new.replace(file)

    def renew() -> None:
        # For a while the old key is refused and the new one is not there.
        server.accept("second", "secret-of-second")
        assert seen.wait(100)
        write("second", "secret-of-second")

    write(server.key, server.secret)
    for name, value in keys.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    mischief = own_s3.mischief(slow_s=0.1, environment=keys)
    assert while_at_work(own_s3, mischief, renew)["shards_failed"] == 0
    own_s3.check()


def test_a_disk_that_is_full_for_a_while(rig: Rig, tmp_path: Path, seen: threading.Event) -> None:
    with small_disk(tmp_path / "disk", size="2m") as disk:
        faults = rig.at(tmp_path / "run", str(tmp_path / "run/root"))
        faults = faults.with_keys("table", path=str(disk / "table"))

        def fill() -> None:
            ballast = disk / "ballast"
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(1024))
            assert seen.wait(100)
            ballast.unlink()

        assert while_at_work(faults, faults.mischief(slow_s=0.05), fill)["shards_failed"] == 0
        faults.check()


@pytest.mark.parametrize(
    ("place", "clock_s"), [("local", 3 * 86_400.0), ("local", -3 * 86_400.0), ("on_s3", 600.0)]
)
def test_wrong_clocks_change_nothing(request: pytest.FixtureRequest, place: str, clock_s: float) -> None:
    """S3 takes requests whose time is less than 15 minutes off."""
    faults: Faults = request.getfixturevalue(place)
    mischief = faults.mischief(clock_s=clock_s, faults={2: ("kill",)})
    assert faults.extract(mischief)["shards_failed"] == 0
    faults.check()
