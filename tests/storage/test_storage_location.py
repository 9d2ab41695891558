import copy
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_disk import small_disk

from mvqkd.storage import local_store
from mvqkd.storage.errors import ObjectMissingError, ObjectTooShortError, StorageError
from mvqkd.storage.location import Location, open_location, read_url


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "place"))


def test_secrets_are_neither_printed_nor_pickled():
    location = open_location(
        "s3://bucket/x",
        options={"endpoint_url": "http://127.0.0.1:1", "key": "hidden1", "secret": "hidden2", "token": None},
    )
    assert "hidden" not in repr(location.join("y")) + str(location)
    data = pickle.dumps(location)
    assert b"hidden" not in data
    assert pickle.loads(data) == location == copy.deepcopy(location)  # noqa: S301 (our own bytes)
    assert pickle.loads(data).options == {"endpoint_url": "http://127.0.0.1:1"}  # noqa: S301


def test_ranges_sizes_and_files(place, tmp_path):
    data = bytes(range(256)) * 10
    place.replace("a", data)
    place.replace("empty", b"")
    assert place.size("a") == 2560 and place.size("empty") == 0
    assert place.read_range("a", 250, 260) == data[250:260] and place.read_range("a", 9, 9) == b""
    with pytest.raises(ObjectTooShortError, match="place/a: the file ends before byte 2561"):
        place.read_range("a", 2550, 2561)
    with place.open("a") as file, place.open_unbuffered("a", tail=9) as raw:
        place.replace("a", b"another one")
        assert file.seek(-5, 2) == 2555 and file.read() == data[-5:], "the file that was opened"
        assert raw.seek(3) == 3 and raw.read(4) == data[3:7]
    for read in (place.size, place.open, lambda name: place.read_range(name, 0, 1), read_url):
        with pytest.raises(ObjectMissingError, match="b: there is no such file"):
            read("b" if read != read_url else str(tmp_path / "b"))
    place.replace("folder/x", b"")
    for read in (place.size, place.open, place.read_bytes):
        with pytest.raises(StorageError, match="folder: a file stands where a folder is needed, or the rev"):
            read("folder")
    assert not place.exists("folder") and not place.exists("a/b")


def test_a_disk_that_fails_while_a_file_is_read_is_named():
    """Memory of a process that is not mapped: the system lets it be opened, and fails at reading."""
    file = open_location("/proc/self").open("mem")
    with pytest.raises(StorageError, match=r"/proc/self/mem: input/output error"):
        file.read(10)


def test_names_too_long_for_the_file_system_are_named(place):
    place.write_once("a", b"")
    for act in (place.exists, place.size, place.read_bytes, lambda name: place.write_once(name, b"")):
        with pytest.raises(StorageError, match=r"the name is longer than the file system takes.*shorten it"):
            act("x" * 256)


def test_the_sweep_leaves_what_others_write(place, monkeypatch):
    """Temporaries of other programs, of hosts that share the folder, of containers that share a host's name."""
    folder = Path(place.url)
    place.write_once("a", b"x")
    ours = f"{local_store._host()}.999999999.1.tmp"
    names = [
        f".a.{ours}",
        ".a.otherhost-1.12.1.tmp",
        f".a.{ours.replace('-', '-9')}",
        ".x.tmp",
        ".tmp",
        "..tmp",
    ]
    for name in names:
        (folder / name).write_bytes(b"")
    assert place.sweep() == 1 and {path.name for path in folder.iterdir()} == {"a", *names[1:]}
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert place.sweep() == 2, "those of our form that nobody wrote to for a week"
    assert {path.name for path in folder.iterdir()} == {"a", ".x.tmp", ".tmp", "..tmp"}


UNPRIVILEGED = """
import os, sys
from mvqkd.storage.errors import StorageError
from mvqkd.storage.location import open_location
place = open_location(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
reads = [place.list, place.sweep, *(lambda act=act: act("a") for act in (place.exists, place.size, place.open))]
for read in [*reads, lambda: place.write_once("b", b""), lambda: place.replace("b", b"")]:
    try:
        print(read())
    except StorageError as error:
        print(error)
"""


@pytest.mark.integration
def test_a_folder_closed_to_us_is_named_and_not_taken_for_an_empty_one(place):
    place.write_once("a", b"x")
    Path(place.url).chmod(0)
    try:
        child = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, place.url], capture_output=True, text=True, check=True
        )
    finally:
        Path(place.url).chmod(0o700)
    answers = child.stdout.splitlines()
    assert len(answers) == 7
    for answer in answers:
        assert (
            answer.startswith(place.url) and "the system refuses access (Permission denied); check" in answer
        )


WRITER = """
import sys
from mvqkd.storage.location import open_location
place = open_location(sys.argv[1])
print(sum(place.write_once(f"shard-{n}", sys.argv[2].encode() * 1000) for n in range(200)))
"""


@pytest.mark.integration
def test_of_two_processes_one_commits(place):
    command = [sys.executable, "-c", WRITER, place.url]
    children = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    won = [int(child.communicate(timeout=60)[0]) for child in children]
    assert sum(won) == 200
    contents = [place.read_bytes(name) for name in place.list()]
    assert [contents.count(name.encode() * 1000) for name in "ab"] == won


@pytest.mark.parametrize("path", ["", "../x", "a\0b", "a//b", "/etc/passwd", "a/./b", "a/.."])
def test_paths_stay_inside(place, path):
    with pytest.raises(ValueError, match="not a relative object path"):
        place.write_once(path, b"x")


def test_write_once_keeps_the_first_and_replace_the_last(place, tmp_path):
    assert place.list() == {} and not place.exists("a")
    assert place.write_once("a", b"first") and not place.write_once("a", b"second")
    assert place.read_bytes("a") == b"first"
    place.replace("a", b"third")
    place.replace("sub/b", b"x" * 10)
    assert place.read_bytes("a") == b"third" and place.exists("a")
    assert place.list() == {"a": 5} and place.list("sub") == {"b": 10}
    assert place.names() == ["a"] and abs(place.entries()["a"].modified - time.time()) < 60
    place.remove("a")
    place.remove("a")
    assert not place.exists("a")
    assert sorted(path.name for path in (tmp_path / "place").rglob("*")) == ["b", "sub"]


def test_a_missing_object_is_named(place):
    with pytest.raises(ObjectMissingError, match=r"place/nothing: there is no such file") as caught:
        place.read_bytes("nothing")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (errors travel from workers)
    assert str(again) == str(caught.value) and type(again) is ObjectMissingError


def test_without_hard_links_it_renames(place, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(local_store.os, "link", refuse)
    assert place.write_once("a", b"first") and not place.write_once("a", b"second")
    assert place.list() == {"a": 5} and place.read_bytes("a") == b"first"


@pytest.mark.parametrize(
    ("number", "message"),
    [(28, "no space left"), (13, "refuses access"), (5, "input/output error"), (1, "refuses access")],
)
def test_system_errors_are_named_and_leave_nothing(place, monkeypatch, number, message):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local_store.os, "fsync", fail)
    with pytest.raises(StorageError, match=rf"place/a: .*{message}.*; "):
        place.write_once("a", b"x")
    assert list(Path(place.url).iterdir()) == []


def test_a_file_where_a_folder_is_needed(place):
    place.write_once("a", b"x")
    with pytest.raises(StorageError, match=r"a/b: a file stands where a folder is needed"):
        place.write_once("a/b", b"x")


KILLED_WRITER = """
import os, sys
from mvqkd.storage.location import open_location
os.link = lambda *_: os.kill(os.getpid(), 9)
open_location(sys.argv[1]).write_once("shard.parquet", b"x" * 100_000)
"""


@pytest.mark.integration
def test_a_writer_killed_before_the_commit_leaves_nothing_to_see(place):
    child = subprocess.run([sys.executable, "-c", KILLED_WRITER, place.url], check=False)
    assert child.returncode == -9
    left = [path.name for path in Path(place.url).iterdir()]
    assert len(left) == 1 and left[0].startswith(".shard.parquet.") and left[0].endswith(".tmp")
    assert not place.exists("shard.parquet") and place.list() == {}
    # A temporary of a living process stays, that of the dead one goes.
    alive = Path(place.url) / left[0].replace(left[0].split(".")[-3], str(os.getpid()))
    alive.write_bytes(b"in progress")
    assert place.sweep() == 1 and [path.name for path in Path(place.url).iterdir()] == [alive.name]
    assert place.sweep("no-such-folder") == 0
    assert place.write_once("shard.parquet", b"whole")


@pytest.mark.integration
def test_a_full_disk_commits_nothing_and_keeps_what_was_committed(tmp_path):
    with small_disk(tmp_path / "disk", size="256k") as disk:
        place = open_location(str(disk))
        place.write_once("kept", b"k" * 100_000)
        with pytest.raises(StorageError, match=r"disk/big: no space left.*nothing was committed; free space"):
            place.write_once("big", b"b" * 500_000)
        with pytest.raises(StorageError, match="no space left"):
            place.replace("kept", b"b" * 500_000)
        assert place.list() == {"kept": 100_000} and [path.name for path in disk.iterdir()] == ["kept"]
        assert place.write_once("small", b"s" * 10_000)


LIMITED_WRITER = """
import resource, signal, sys
from mvqkd.storage.location import open_location
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
open_location(sys.argv[1]).write_once("big", b"b" * 100_000)
"""


@pytest.mark.integration
def test_a_file_size_limit_commits_nothing(place):
    """As the full disk, for users who may not mount."""
    child = subprocess.run(
        [sys.executable, "-c", LIMITED_WRITER, place.url], capture_output=True, text=True, check=False
    )
    assert "StoreOutageError" in child.stderr and "no space left" in child.stderr
    assert list(Path(place.url).iterdir()) == []
