"""Which folder or file a path or url names, and which are refused."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mvqkd.storage.errors import ObjectMissingError, StorageError
from mvqkd.storage.location import expand, is_url, open_location, read_url


def test_local_urls_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_location("runs/x").url == str(tmp_path / "runs/x")
    assert open_location("file:///data/a%20b").base_path == "/data/a b"
    assert open_location("~/x").url == str(Path.home() / "x")
    assert open_location("runs/x").is_local and not open_location("s3://b/x").is_local
    assert open_location("s3://bucket//a//b/").url == "s3://bucket/a/b"
    assert open_location("s3://bucket/a").join("b", "c").base_path == "bucket/a/b/c"
    assert open_location("runs").filesystem.protocol == ("file", "local")


def test_odd_paths_name_the_folder_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_location("file:///data/a#b?c%23").base_path == "/data/a#b?c#"
    assert open_location("/data/s3://x").url == "/data/s3:/x" and open_location("/data/s3://x").is_local
    assert open_location("s3://bucket/a#b?c d").base_path == "bucket/a#b?c d"
    assert open_location("s3://bucket/").url == open_location("s3://bucket").url == "s3://bucket"
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/deep")
    open_location("link/../x").replace("a", b"1")
    assert (tmp_path / "elsewhere/x/a").read_bytes() == b"1", "as every other program takes such a path"
    assert expand("a b/c") == str(tmp_path / "a b/c") and expand("https://x/~a") == "https://x/~a"
    assert is_url("s3://x") and not is_url("/a://b") and not is_url("a/b://c")
    for name in ("a b", "x#y", "50%20", "ü/ñ", "a?b", "~x", "-x", "a:b", "\n", "x" * 255):
        place = open_location(str(tmp_path / "odd"))
        assert place.write_once(name, name.encode()) and not place.write_once(name, b"")
        assert place.read_bytes(name) == read_url(place.full_url(name)) == name.encode()


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("gs://bucket/x", None, "only local folders, file:// and s3://"),
        ("file://host/x", None, "three slashes"),
        ("s3://", None, "s3://bucket/prefix"),
        ("s3://me:topsecret@bucket/x", None, "neither it nor endpoint_url may hold credentials"),
        ("s3://b/x", {"endpoint_url": "http://me:topsecret@host"}, "may hold credentials"),
        ("s3://b/x", {"secrte": "topsecret"}, "unknown secrte; known are"),
    ],
)
def test_bad_urls_and_options_are_refused_without_their_secrets(url, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_location(url, options=options)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "'' names no file or folder"),
        ("a\0b", "names no file or folder"),
        (
            "~nobody-of-this-name/x",
            "there is no user 'nobody-of-this-name' here; write ./~nobody-of-this-name",
        ),
        ("s3://bucket/a/../b", "'.' and '..' are no folders in S3"),
        ("file://~/x", "three slashes"),
    ],
)
def test_paths_that_name_nothing_are_refused(url, message):
    with pytest.raises(ValueError, match=message):
        open_location(url)


class QuietHandler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/fail":
            self.send_error(500)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_bytes_of_any_url(tmp_path):
    (tmp_path / "a b.wav").write_bytes(b"audio")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert read_url(f"{base}/a%20b.wav") == b"audio"
        with pytest.raises(ObjectMissingError, match=rf"^{base}/b.wav: there is no such file"):
            read_url(f"{base}/b.wav")
        with pytest.raises(StorageError, match=r"fail: it cannot be read .*check the url, the network"):
            read_url(f"{base}/fail")
        server.shutdown()
    for url in (f"{base}/a%20b.wav", "nonsense://x"):
        with pytest.raises(StorageError, match=r"it cannot be read") as caught:
            read_url(url)
        assert type(caught.value) is StorageError


@pytest.mark.parametrize(
    "url",
    ["", "a\0b", "~nobody-of-this-name/a", "/", "s3://bucket/a/", "s3://bucket/a/../b", "/data/\ud800.wav"],
)
def test_names_that_no_file_has_are_missing_files(url):
    """So that one bad name in a manifest costs its utterance, and not the shard."""
    with pytest.raises(ObjectMissingError, match=r"names no file|no file can have this name"):
        read_url(url)
