"""Objects that are read through obstore are those that s3fs reads, and what goes wrong is left to s3fs."""

import multiprocessing
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.credentials  # type: ignore[import-untyped]
import pytest
from s3_server import S3Server

from mvqkd.storage import s3_gets
from mvqkd.storage.errors import BucketMissingError, ObjectMissingError, ObjectTooShortError, StorageError
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.s3_gets import S3Gets
from mvqkd.storage.s3_store import S3Store

pytestmark = pytest.mark.integration

NAMES = (
    "a.flac", "A", "%41", "a b", "a+b", "a%20b", "50%.wav", "é/ü.flac", "x#y", "x", "q?r", "(1)~'*!.wav", "deep/er/a",
)  # fmt: skip


@pytest.fixture
def place(s3_environment: S3Server) -> Location:
    place = open_location(f"s3://{s3_environment.bucket}/gets")
    store = place._store
    assert isinstance(store, S3Store)
    store._gets._rests_until = 0.0  # from the trouble of the test before
    return place


@pytest.fixture
def no_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks s3fs for an object fails."""

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("s3fs was asked")

    monkeypatch.setattr(S3Store, "_get", asked)


def test_objects_by_any_name(place: Location) -> None:
    """Whatever a name has in it, the object is the one that was written, and not that of a name like it."""
    for name in NAMES:
        place.replace(name, name.encode() * 100)
    for name in NAMES:
        assert place.read_bytes(name) == name.encode() * 100
        assert place.read_range(name, 1, 7) == (name.encode() * 100)[1:7]


def test_s3fs_is_not_asked_for_what_is_there(place: Location, no_s3fs: None) -> None:
    """Else a change of obstore's, or of ours, would make every GET slow without a word."""
    place.replace("a/b c.flac", b"0123456789")
    assert place.read_bytes("a/b c.flac") == b"0123456789"
    assert place.read_range("a/b c.flac", 2, 5) == b"234"


def test_empty_objects(place: Location) -> None:
    place.replace("empty", b"")
    assert place.read_bytes("empty") == b""


def test_what_is_missing_has_the_words_it_had(place: Location, s3_environment: S3Server) -> None:
    place.replace("short", b"0123")
    with pytest.raises(ObjectTooShortError):
        place.read_range("short", 2, 9)
    with pytest.raises(ObjectTooShortError):
        place.read_range("short", 7, 9)
    with pytest.raises(ObjectMissingError, match="gets/none: there is no such object"):
        place.read_bytes("none")
    with pytest.raises(BucketMissingError, match="does not exist"):
        open_location(f"s3://{s3_environment.bucket}-none/a").read_bytes("b")


def test_what_is_missing_is_no_trouble(place: Location) -> None:
    """Who looks for many that are not there would read all else slowly."""
    place.replace("here", b"1")
    with pytest.raises(ObjectMissingError):
        place.read_bytes("none")
    store = place._store
    assert isinstance(store, S3Store)
    assert store._gets.get(*place.full_path("here").split("/", 1)) == b"1"


def test_a_key_that_is_refused(
    place: Location, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.replace("a", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(StorageError, match="the server refused the credentials"):
        place.read_bytes("a")


def test_keys_of_the_options(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, no_s3fs: None
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    options = {"key": s3_environment.key, "secret": s3_environment.secret}
    place = open_location(f"s3://{s3_environment.bucket}/gets", options=options)
    place.replace("by-options", b"1")
    assert place.read_bytes("by-options") == b"1"


def test_trouble_is_left_to_s3fs_for_a_while(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that throttles is not asked twice for everything."""
    place.replace("a", b"1")
    opened = []

    class Broken:
        def get(self, key: str) -> None:
            opened.append(key)
            raise s3_gets.BaseError("503 SlowDown")

    monkeypatch.setattr(S3Gets, "_open", lambda *_: Broken())
    store = place._store
    assert isinstance(store, S3Store)
    gets = S3Gets(store.filesystem, {})
    monkeypatch.setattr(store, "_gets", gets)
    clock = [1000.0]
    monkeypatch.setattr(s3_gets.time, "monotonic", lambda: clock[0])
    assert [place.read_bytes("a") for _ in range(3)] == [b"1"] * 3
    assert len(opened) == 1
    clock[0] += 11
    assert place.read_bytes("a") == b"1"
    assert len(opened) == 2


def test_no_credentials_at_all(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StorageError, match=re.escape("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")):
        open_location(f"s3://{s3_environment.bucket}/gets").read_bytes("a")


def test_credentials_that_are_renewed_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched() -> dict[str, str]:
        at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        return {"access_key": "k", "secret_key": "s", "token": "t", "expiry_time": at}

    renewed = botocore.credentials.RefreshableCredentials.create_from_metadata(fetched(), fetched, "a test")

    class Session:
        def get_credentials(self) -> Any:
            return renewed

    monkeypatch.setattr(s3_gets.botocore.session, "get_session", Session)
    given = s3_gets._credentials({})()
    assert (given["access_key_id"], given["secret_access_key"], given["token"]) == ("k", "s", "t")
    left = given["expires_at"] - datetime.now(UTC)
    assert timedelta(minutes=10) < left < timedelta(minutes=30)


def test_a_forked_process_reads(place: Location) -> None:
    """The threads of obstore are not in it."""
    place.replace("a", b"forked")
    assert place.read_bytes("a") == b"forked"
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(place.read_bytes("a")), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == b"forked"
