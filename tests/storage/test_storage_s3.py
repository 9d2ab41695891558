"""The storage room against a real S3 server, and against one that misbehaves on purpose."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from s3_server import S3Server

from mvqkd.storage.artifacts import load_artifact, save_artifact
from mvqkd.storage.errors import ObjectMissingError, StorageError, StoreOutageError, TableError
from mvqkd.storage.failures import Failure, read_failures, write_failures
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import IndexTable

pytestmark = pytest.mark.integration


@pytest.fixture
def place(s3_environment: S3Server, request: pytest.FixtureRequest) -> Location:
    """A prefix of its own for each test."""
    return open_location(f"s3://{s3_environment.bucket}/{request.node.name.replace('[', '-').strip(']')}")


def test_objects(place):
    assert place.list() == {} and not place.exists("a") and not place.is_local
    assert place.write_once("a", b"first") and not place.write_once("a", b"second")
    assert place.read_bytes("a") == b"first" and place.exists("a")
    place.replace("a", b"third")
    place.replace("sub/b ü+%.x", b"x" * 10)
    assert place.read_bytes("a") == b"third" and place.list() == {"a": 5}
    assert place.join("sub").list() == place.list("sub") == {"b ü+%.x": 10}
    assert place.sweep() == 0
    place.remove("a")
    place.remove("a")
    with pytest.raises(ObjectMissingError, match=r"^s3://.*/a: there is no such object"):
        place.read_bytes("a")


def test_of_many_writers_one_commits(place):
    barrier, wins = threading.Barrier(8), []

    def write(number: int) -> None:
        barrier.wait()
        wins.append((place.write_once("a", bytes([number]) * 1000), number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for won, number in wins if won]
    assert len(wins) == 8 and len(winners) == 1
    assert place.read_bytes("a") == bytes(winners) * 1000


def test_a_table_on_s3_is_the_local_one_byte_for_byte(place, tmp_path, contract, make_rows):
    here = open_location(str(tmp_path / "table"))
    for location in (here, place):
        table = IndexTable.create(location, contract)
        assert (
            table.write_shard("one", make_rows(20)).committed
            and table.write_shard("two", make_rows(30, seed=1)).committed
        )
        assert not table.write_shard("two", make_rows(3)).committed
        write_failures(location, "two", [Failure(shard="two", cut_id="x", stage="load", error="E",
                                                 message="m", attempts=1)])  # fmt: skip
    assert here.list() == place.list() and set(here.list()) == {"table.json", "one.parquet", "two.parquet"}
    for path in [*here.list(), "_failures/two.parquet"]:
        assert here.read_bytes(path) == place.read_bytes(path), path

    remote = IndexTable.open(place)
    assert remote.committed() == {"one", "two"} and remote.verify() == 50
    assert remote.dataset().count_rows() == 50
    assert read_failures(place) == read_failures(here)
    local_summary, remote_summary = inspect_table(here).to_dict(), inspect_table(place).to_dict()
    assert local_summary.pop("url") != remote_summary.pop("url") and local_summary == remote_summary


def test_artifacts_and_truncated_shards(place, contract, make_rows):
    save_artifact(place, "q", {"x": np.ones(3, np.float32)}, {"id": "q"})
    assert load_artifact(place, "q")[1] == {"id": "q"}
    table = IndexTable.create(place, contract)
    table.write_shard("s", make_rows(2))
    place.replace("s.parquet", place.read_bytes("s.parquet")[:-30])
    for read in (lambda: table.read_shard("s"), table.dataset):
        with pytest.raises(TableError, match=r"^s3://.*/s\.parquet: a truncated or corrupt"):
            read()


OPERATIONS = {
    "list": lambda location: location.list(),
    "read": lambda location: location.read_bytes("a"),
    "write": lambda location: location.write_once("a", b"x"),
    "replace": lambda location: location.replace("a", b"x"),
    "remove": lambda location: location.remove("a"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_bucket_is_named(s3_environment, operation):
    with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist; create it or correct"):
        OPERATIONS[operation](open_location("s3://no-such-bucket/x"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_key_is_refused_and_not_shown(place, s3_environment, monkeypatch, operation):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(
        StoreOutageError, match=r"refused the credentials \(SignatureDoes.*check AWS_ACCESS_KEY_ID"
    ) as caught:
        OPERATIONS[operation](place)
    assert "wrong-secret" not in str(caught.value)
    options = {"key": s3_environment.key, "secret": s3_environment.secret}
    assert open_location(place.url, options=options).list() == {}, "options win over the environment"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_environment.secret)
    assert place.list() == {}, "a corrected environment takes effect"


def test_missing_credentials_are_named(place, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreOutageError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        place.list()


def test_an_unreachable_endpoint_is_named(place, monkeypatch):
    monkeypatch.setattr("mvqkd.storage.s3_store._ATTEMPTS", 2)
    nowhere = open_location(place.url, options={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StoreOutageError, match=r"endpoint cannot be reached.*check endpoint_url"):
        nowhere.list()


def _read_in_child(location: Location, queue) -> None:
    queue.put((os.getpid(), location.read_bytes("a")))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_location_works_in_another_process(place, method):
    place.write_once("a", b"hello")  # opens the parent's connection before the fork
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(place, queue))
    child.start()
    pid, data = queue.get(timeout=60)
    child.join(timeout=10)
    assert data == b"hello" and pid == child.pid != os.getpid() and child.exitcode == 0


KILLED_WRITER = """
import os, sys, threading
from mvqkd.storage.location import open_location
place = open_location(sys.argv[1])
place.list()
threading.Timer(0.15, os.kill, (os.getpid(), 9)).start()
place.write_once("shard.parquet", b"x" * (128 << 20))
"""


def test_a_writer_killed_in_the_middle_leaves_all_or_nothing(place):
    place.write_once("kept", b"k")
    child = subprocess.run([sys.executable, "-c", KILLED_WRITER, place.url], check=False)
    assert child.returncode == -9
    # Nothing, unless the machine is so fast that the whole object was through before the kill.
    assert place.list() in ({"kept": 1}, {"kept": 1, "shard.parquet": 128 << 20})
    place.replace("shard.parquet", b"whole")
    assert place.read_bytes("shard.parquet") == b"whole"


@dataclass
class Scripted:
    """Answers of a server, one for each request; the last is repeated."""

    answers: list[tuple[int, str]]
    requests: list[str] = field(default_factory=list)


@contextmanager
def scripted_server(*answers: tuple[int, str]) -> Iterator[tuple[Location, Scripted]]:
    script = Scripted(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            script.requests.append(f"{self.command} {self.path}")
            status, body = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_GET = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "key": "k", "secret": "s"}
        yield open_location("s3://bucket/x", options=options), script
    finally:
        server.shutdown()
        server.server_close()


def error(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>said so</Message></Error>"


def test_a_busy_server_is_asked_again():
    answers = [(503, error("SlowDown")), (500, error("InternalError")), (200, "")]
    with scripted_server(*answers) as (place, script):
        assert place.write_once("a", b"x")
        assert [request.split("?")[0] for request in script.requests] == ["PUT /bucket/x/a"] * 3


def test_a_conflicting_write_waits_for_the_other():
    answers = [(409, error("ConditionalRequestConflict")), (412, error("PreconditionFailed"))]
    with scripted_server(*answers) as (place, script):
        assert not place.write_once("a", b"x")
        assert len(script.requests) == 2


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (501, "NotImplemented", r"lacks conditional writes"),
        (507, "InsufficientStorage", r"the server answered InsufficientStorage.*server's log"),
        (500, "InternalError", r"kept answering InternalError; run again later"),
    ],
)
def test_other_answers_are_named(monkeypatch, status, code, message):
    monkeypatch.setattr("mvqkd.storage.s3_store._ATTEMPTS", 2)
    with (
        scripted_server((status, error(code))) as (place, _),
        pytest.raises(StorageError, match=message),
    ):
        place.write_once("a", b"x")


def test_long_listings_come_in_pages():
    page = (
        "<ListBucketResult><IsTruncated>{more}</IsTruncated><NextContinuationToken>next</NextContinuationToken>"
        "<Contents><Key>x/{name}</Key><Size>3</Size><LastModified>2026-01-31T12:00:00Z</LastModified></Contents>"
        "<CommonPrefixes><Prefix>x/sub/</Prefix></CommonPrefixes></ListBucketResult>"
    )
    pages = [(200, page.format(more="true", name="b")), (200, page.format(more="false", name="a"))]
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
    with scripted_server(*pages) as (place, script):
        assert list(place.entries().items()) == [("a", (3, noon)), ("b", (3, noon))]
        assert "continuation-token=next" in script.requests[1]


def test_an_object_too_large_for_one_put_is_refused(place, monkeypatch):
    monkeypatch.setattr("mvqkd.storage.s3_store._MAX_PUT_BYTES", 10)
    with pytest.raises(StorageError, match="use smaller shards"):
        place.write_once("a", b"x" * 11)


def test_no_secret_is_in_the_server_fixture_repr(s3_server, tmp_path: Path):
    assert s3_server.secret not in repr(s3_server)
