"""What is fetched from S3 when a part is read: counted on the wire, between the client and a real server."""

import gzip
import io
import socket
import socketserver
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pytest
from s3_server import S3Server

from mvqkd.storage.errors import (
    BucketMissingError,
    ObjectMissingError,
    ObjectTooShortError,
    StorageError,
    TableError,
)
from mvqkd.storage.location import Location, open_location, read_url
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import IndexTable

pytestmark = pytest.mark.integration


@dataclass
class Wire:
    """Bytes the server sent and requests it got since `reset`; `cut_after` ends every connection early."""

    location: Location
    received: int = 0
    requests: int = 0
    cut_after: int | None = None

    def reset(self) -> None:
        self.received = self.requests = 0


@contextmanager
def counted(location: Location, endpoint_url: str) -> Iterator[Wire]:
    """The same place, reached through a proxy that counts."""
    server_at = urlsplit(endpoint_url)
    wire = Wire(location=location)

    class Proxy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            upstream = socket.create_connection((server_at.hostname, server_at.port))
            forward = threading.Thread(target=self.pass_on, args=(self.request, upstream), daemon=True)
            forward.start()
            sent = 0
            while data := upstream.recv(1 << 16):
                if wire.cut_after is not None and sent + len(data) > wire.cut_after:
                    self.request.sendall(data[: wire.cut_after - sent])
                    break
                sent += len(data)
                wire.received += len(data)
                self.request.sendall(data)
            self.request.shutdown(socket.SHUT_RDWR)
            upstream.close()

        def pass_on(self, source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := source.recv(1 << 16):
                    wire.requests += data.startswith((b"GET ", b"HEAD "))
                    sink.sendall(data)
            except OSError:
                pass  # the other direction ended the connection

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        options = {"endpoint_url": f"http://127.0.0.1:{proxy.server_address[1]}"}
        wire.location = open_location(location.url, options=options)
        yield wire
        proxy.shutdown()


@pytest.fixture
def place(s3_environment: S3Server, request: pytest.FixtureRequest) -> Location:
    return open_location(f"s3://{s3_environment.bucket}/{request.node.name}")


def test_ranges_and_sizes(place):
    data = bytes(range(256)) * 10
    place.replace("a", data)
    place.replace("empty", b"")
    assert place.size("a") == 2560 and place.size("empty") == 0
    assert place.read_range("a", 250, 260) == data[250:260] and place.read_range("a", 9, 9) == b""
    for start, end in ((2550, 2561), (3000, 3001)):
        with pytest.raises(ObjectTooShortError, match=rf"/a: the object ends before byte {end}"):
            place.read_range("a", start, end)
    for read in (place.size, place.open, lambda name: place.read_range(name, 0, 1), place.read_bytes):
        with pytest.raises(ObjectMissingError, match=r"^s3://.*/b: there is no such object"):
            read("b")
    assert place.open("empty").read() == b"" and place.open_unbuffered("empty", tail=10).read() == b""


def test_names_with_unusual_characters(place):
    for name in ("a b", "a?versionId=3", "50%", "50%20", "x#bytes=0-1", "ü/ñ", "a+b&c=d;e", "~x", "a:b"):
        place.replace(name, name.encode())
        assert place.read_bytes(name) == place.read_range(name, 0, len(name.encode())) == name.encode()
        assert read_url(place.full_url(name), options=place.options) == name.encode()
    assert sorted(place.list()) == sorted(["a b", "a?versionId=3", "50%", "50%20", "x#bytes=0-1",
                                           "a+b&c=d;e", "~x", "a:b"])  # fmt: skip


def test_a_name_that_no_object_has_is_missing(place):
    for read in (place.read_bytes, place.size, place.open):
        with pytest.raises(ObjectMissingError, match="no object can have this name"):
            read("\ud800")


def test_a_file_is_read_in_pieces(place, s3_environment):
    data = np.random.default_rng(0).bytes(5 << 20)
    packed = gzip.compress(data, 1)
    place.replace("a.gz", packed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"m{number}")
            member.size = 2 << 20
            tar.addfile(member, io.BytesIO(data[number << 20 :]))
    place.replace("a.tar", buffer.getvalue())
    with counted(place, s3_environment.endpoint_url) as wire:
        with wire.location.open("a.gz") as file:
            assert gzip.GzipFile(fileobj=file).read() == data
        assert wire.requests <= 8 and wire.received < len(packed) * 1.01
        wire.reset()
        with wire.location.open("a.tar") as file, tarfile.open(fileobj=file) as tar:
            assert tar.getnames() == ["m0", "m1", "m2"]
            assert tar.extractfile("m1").read(10) == data[1 << 20 :][:10]
        with wire.location.open("a.gz") as file:
            assert file.seek(-10, io.SEEK_END) == len(packed) - 10 and file.read() == packed[-10:]
            assert file.seek(0) == 0 and file.read(3) == packed[:3]


def test_columns_and_summaries_fetch_a_small_part(place, s3_environment, contract, make_rows):
    table = IndexTable.create(place, contract)
    table.write_shard("s", make_rows(1000))
    size = place.size("s.parquet")
    assert size > 1_000_000
    with counted(place, s3_environment.endpoint_url) as wire:
        near = IndexTable.open(wire.location)
        wire.reset()
        arrow = near.read_shard("s", columns=["duration", "text"])
        assert arrow.num_rows == 1000 and wire.requests == 2 and wire.received < 0.04 * size
        wire.reset()
        # Columns on both sides of the codes.
        assert near.read_shard("s", columns=["cut_id", "cut"]).equals(
            table.read_shard("s", columns=["cut_id", "cut"])
        )
        assert wire.received < 0.08 * size
        wire.reset()
        assert near.summary_of("s") == table.summary_of("s")
        assert wire.requests == 1 and wire.received < 20_000
        wire.reset()
        assert near.read_shard("s").equals(table.read_shard("s"))
        assert wire.requests == 1, "a whole read is one GET"
        table.write_shard("small", make_rows(2))
        wire.reset()
        assert near.read_shard("small", columns=["cut_id"]).num_rows == near.summary_of("small").rows == 2
        assert wire.requests == 2, "a file shorter than the first read comes with it"
        table.location.remove("small.parquet")
        wire.reset()
        assert inspect_table(wire.location).rows == 1000
        assert wire.received < 30_000


def test_a_shard_replaced_while_it_is_read_is_not_mixed(place, contract, make_rows):
    table = IndexTable.create(place, contract)
    table.write_shard("s", make_rows(500))
    file = place.open_unbuffered("s.parquet", tail=1000)
    place.remove("s.parquet")
    table.write_shard("s", make_rows(400, seed=1))
    with pytest.raises(StorageError, match="replaced while it was read; run the same command again"):
        file.read(100)
    assert table.read_shard("s", columns=["rrl"]).num_rows == 400


def test_a_connection_that_breaks_off_is_a_storage_error(
    place, s3_environment, monkeypatch, contract, make_rows
):
    monkeypatch.setattr("mvqkd.storage.s3_store._BROKEN_BODY_WAITS_S", (0.01,))
    monkeypatch.setattr("mvqkd.storage.s3_store._ATTEMPTS", 2)
    IndexTable.create(place, contract).write_shard("s", make_rows(1000))
    with counted(place, s3_environment.endpoint_url) as wire:
        table = IndexTable.open(wire.location)
        with wire.location.open("s.parquet") as file:
            file.read(10)
            wire.cut_after = 3000
            for read in (
                lambda: file.seek(1_050_000) and file.read(50_000),
                lambda: wire.location.read_bytes("s.parquet"),
                lambda: wire.location.read_range("s.parquet", 0, 100_000),
                lambda: table.read_shard("s", columns=["codes"]),
                lambda: table.summary_of("s"),
            ):
                with pytest.raises(StorageError, match=r"^s3://.*: the S3 endpoint cannot be reached"):
                    read()
        wire.cut_after = None
        assert table.read_shard("s", columns=["codes"]).num_rows == 1000, "the shard was not the fault"


def test_missing_shards_and_buckets(place, contract, s3_environment):
    table = IndexTable.create(place, contract)
    for read in (table.read_shard, table.summary_of, lambda name: table.read_shard(name, columns=["rrl"])):
        with pytest.raises(TableError, match=r"nope\.parquet: no such shard"):
            read("nope")
    with pytest.raises(BucketMissingError, match="bucket 'no-such-bucket' does not exist"):
        open_location("s3://no-such-bucket/x").open("a")
    whole_bucket = open_location(f"s3://{s3_environment.bucket}/")
    whole_bucket.replace("at-the-top", b"x")
    assert whole_bucket.read_bytes("at-the-top") == b"x" and "at-the-top" in whole_bucket.list()
