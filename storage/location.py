"""Where objects live: one small interface over a local folder and an S3 prefix."""

import builtins
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mvqkd.storage.credentials import credentials_files
from mvqkd.storage.entry import Entry
from mvqkd.storage.errors import ObjectMissingError, StorageError
from mvqkd.storage.local_store import LocalStore

if TYPE_CHECKING:
    import pyarrow.fs

    from mvqkd.storage.s3_store import S3Store

_PUBLIC_OPTIONS = {"endpoint_url", "region", "anon"}
_SECRET_OPTIONS = {"key", "secret", "token"}
# A scheme begins with a letter, so a path that holds "://" somewhere behind a slash is none.
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<rest>.*)", re.DOTALL)
_BUFFER_BYTES = 1 << 20

# Stores of this process. The key holds the process id, so that a forked child opens its own (s3fs hangs over
# a fork), and what credentials are taken from, so that a change of them takes effect.
_STORES: "dict[tuple[Any, ...], LocalStore | S3Store]" = {}


@dataclass(frozen=True, kw_only=True)
class Location:
    """A folder of objects, local or in S3, with the rule "whole or not there" for every write.

    Build it with `open_location`. It holds no connection: the file system opens lazily in the process that
    uses it. Pickled, it is the url and the options that are not secret; the receiving process takes
    credentials from its own AWS environment. Paths given to its methods are relative to it, with `/` between
    parts.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    _secrets: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, dict(self.options))

    @property
    def is_local(self) -> bool:
        """Whether this is a local folder."""
        return not self.url.startswith("s3://")

    @property
    def base_path(self) -> str:
        """The path the fsspec file system knows: an absolute folder, or `bucket/prefix`."""
        return self.url.removeprefix("s3://")

    @property
    def filesystem(self) -> Any:
        """The fsspec file system of this process."""
        return self._store.filesystem

    def arrow_filesystem(self) -> "pyarrow.fs.FileSystem":
        """The Arrow file system of this process, which knows objects by `full_path`."""
        import pyarrow.fs  # here, because it takes longer to import than a listing takes

        if self.is_local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.filesystem))

    def join(self, *parts: str) -> "Location":
        """The location of a subfolder."""
        return Location(url=self.full_url("/".join(parts)), options=self.options, _secrets=self._secrets)

    def full_url(self, path: str) -> str:
        """The url of an object, as error messages show it. Raises ValueError for paths that lead outside."""
        parts = path.split("/")
        if any(part in {"", ".", ".."} or "\0" in part for part in parts):
            raise ValueError(f"{path!r} is not a relative object path; use names joined by '/', without '..'")
        return f"{self.url.rstrip('/')}/{path}"

    def full_path(self, path: str) -> str:
        """The path of an object in `filesystem`."""
        return self.full_url(path).removeprefix("s3://")

    def exists(self, path: str) -> bool:
        """Whether an object is committed under `path`."""
        return self._store.exists(self.full_path(path))

    def size(self, path: str) -> int:
        """Bytes of the object. Raises `ObjectMissingError` when there is none, `StorageError` for the rest."""
        return self._store.size(self.full_path(path))

    def read_bytes(self, path: str) -> bytes:
        """The whole object. Raises `ObjectMissingError` when there is none, `StorageError` for the rest."""
        return self._store.read(self.full_path(path))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """The bytes of the object from `start` to `end` (exclusive), by one request.

        Raises:
            ObjectTooShortError: the object ends before `end`.
            ObjectMissingError, StorageError: as `read_bytes`.
        """
        return self._store.read_range(self.full_path(path), start, end)

    def open(self, path: str) -> io.BufferedReader:
        """The object as a binary file that can be sought in; in S3 by ranged reads of a MiB or more.

        It stays the object that it was at the opening: one that is replaced then is not mixed with the new one.

        Raises:
            ObjectMissingError: there is none.
            StorageError: it cannot be read, now or at any read of the file.
        """
        return io.BufferedReader(self._store.open(self.full_path(path), head=_BUFFER_BYTES), _BUFFER_BYTES)

    def open_unbuffered(self, path: str, *, tail: int) -> io.RawIOBase:
        """As `open`, but a read fetches what it asks for and no more.

        In S3 the last `tail` bytes come with the opening, which is one request.
        """
        return self._store.open(self.full_path(path), tail=tail)

    def write_once(self, path: str, data: bytes) -> bool:
        """Commit a new object; an existing one is left alone. Returns whether this call committed it.

        Local: temporary file in the same folder, fsync, hard link. S3: one conditional PUT. A writer killed
        at any moment leaves either the whole object or none.
        """
        return self._store.write_once(self.full_path(path), data)

    def replace(self, path: str, data: bytes) -> None:
        """Commit an object over whatever is there; a reader sees the old or the new one, whole."""
        self._store.replace(self.full_path(path), data)

    def list(self, path: str = "") -> dict[str, int]:
        """Names of the objects directly in the folder and their sizes in bytes, sorted; no subfolders."""
        return {name: entry.size for name, entry in self.entries(path).items()}

    def entries(self, path: str = "") -> dict[str, Entry]:
        """As `list`, with the times of the last writes too; the same requests."""
        return self._store.list(self._folder(path))

    def names(self, path: str = "") -> "builtins.list[str]":
        """The keys of `list` alone; locally in a fraction of its time."""
        return self._store.names(self._folder(path))

    def _folder(self, path: str) -> str:
        return self.full_path(path) if path else self.base_path.rstrip("/") or "/"

    def remove(self, path: str) -> None:
        """Delete the object; nothing happens when it is not there."""
        self._store.remove(self.full_path(path))

    def sweep(self, path: str = "") -> int:
        """Delete temporaries that killed writers of this host left in the folder; returns how many."""
        return self._store.sweep(self.full_path(path) if path else self.base_path)

    @property
    def _store(self) -> "LocalStore | S3Store":
        if self.is_local:
            key: tuple[Any, ...] = (os.getpid(), "local")
        else:
            environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
            settings = tuple(sorted({**self.options, **self._secrets}.items()))
            key = (os.getpid(), "s3", settings, environment, credentials_files())
        store = _STORES.get(key)
        if store is None:
            store = LocalStore() if self.is_local else _new_s3_store({**self.options, **self._secrets})
            _STORES[key] = store
        return store


def open_location(url: str, *, options: Mapping[str, Any] | None = None) -> Location:
    """Name a folder of objects; nothing is contacted or created yet.

    Args:
        url: a local folder (relative to the working directory, absolute, or `~/...`), `file:///...` or
            `s3://bucket/prefix`.
        options: for S3: `endpoint_url`, `region`, `anon`; also `key`, `secret`, `token`, which stay in this
            process (never printed, pickled or stored). Without them the usual AWS environment variables and
            configuration files count.

    Raises:
        ValueError: unknown option, unknown kind of url, an empty one, or credentials inside an url.
    """
    options = dict(options or {})
    unknown = sorted(set(options) - _PUBLIC_OPTIONS - _SECRET_OPTIONS)
    if unknown:
        known = ", ".join(sorted(_PUBLIC_OPTIONS | _SECRET_OPTIONS))
        raise ValueError(f"storage options: unknown {', '.join(unknown)}; known are {known}")
    match = _URL.fullmatch(url)
    if match is None:
        return Location(url=expand(url))
    scheme, rest = match["scheme"], match["rest"]
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in {"", "localhost"} or not slash:
            raise ValueError(f"{url}: a file url has three slashes; write file:///absolute/path")
        return Location(url=expand("/" + unquote(path)))
    if scheme != "s3":
        raise ValueError(f"{url}: only local folders, file:// and s3:// are known")
    bucket, _, prefix = rest.strip("/").partition("/")
    if not bucket or "@" in bucket or "@" in urlsplit(str(options.get("endpoint_url", ""))).netloc:
        raise ValueError(
            "an S3 url is s3://bucket/prefix, and neither it nor endpoint_url may hold credentials; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    if {".", ".."} & set(prefix.split("/")):
        raise ValueError(f"{url}: '.' and '..' are no folders in S3; write the url without them")
    public = {name: value for name, value in options.items() if name in _PUBLIC_OPTIONS and value is not None}
    secrets = {
        name: value for name, value in options.items() if name in _SECRET_OPTIONS and value is not None
    }
    clean = "/".join(part for part in (bucket, *prefix.split("/")) if part)
    return Location(url=f"s3://{clean}", options=public, _secrets=secrets)


def is_url(path: str) -> bool:
    """Whether this names something by a scheme (`s3://`, `https://`) and not by a local path."""
    return _URL.fullmatch(path) is not None


def expand(path: str) -> str:
    """A path that any process of this machine understands: absolute, `~` expanded; urls stay as they are.

    Raises:
        ValueError: an empty path, or `~name` without a user of that name.
    """
    if is_url(path):
        return path
    if not path or "\0" in path:
        raise ValueError(f"{path!r} names no file or folder; give a path or an s3:// url")
    home = os.path.expanduser(path)  # noqa: PTH111 (Path's own raises for some)
    if home.startswith("~"):
        user = home.partition("/")[0]
        raise ValueError(
            f"{path}: there is no user {user[1:]!r} here; write ./{user} for a folder of that name"
        )
    # "a/link/.." is what the system says it is, so it is not shortened.
    return str(Path(home).absolute())


def read_url(url: str, *, options: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of one file: a local path, `s3://`, or any other url that fsspec knows, such as `https://`.

    Args:
        url: of the file.
        options: for `s3://`, as `open_location` takes them.

    Raises:
        ObjectMissingError: there is no such file, or none can have this name.
        StorageError: it cannot be read, or nothing is known of this kind of url.
    """
    in_s3 = url.startswith("s3://")
    if in_s3 or not is_url(url):
        try:
            folder, _, name = expand(url).rpartition("/")
        except ValueError as error:
            raise ObjectMissingError(url, f"it names no file ({error})", "correct it") from error
        if not name or (in_s3 and {".", ".."} & set(url.split("/"))):
            raise ObjectMissingError(url, "it names no file", "correct it")
        return open_location(folder or "/", options=options if in_s3 else None).read_bytes(name)
    import aiohttp
    import fsspec

    try:
        # Not fsspec.open: over http it calls every trouble of the server a missing file.
        filesystem, path = fsspec.url_to_fs(url)
        return filesystem.cat_file(path)
    except FileNotFoundError as error:
        raise ObjectMissingError(url, "there is no such file", "check the url") from error
    # An unknown scheme is a ValueError, one whose library is missing an ImportError.
    except (OSError, ValueError, ImportError, aiohttp.ClientError) as error:
        problem = f"it cannot be read ({type(error).__name__}: {error})"
        raise StorageError(url, problem, "check the url, the network and the server") from error


def _new_s3_store(options: Mapping[str, Any]) -> "S3Store":
    # s3fs takes a second to import, which those with local folders need not wait for.
    from mvqkd.storage.s3_store import S3Store

    return S3Store(options)


def _reopen(url: str, options: Mapping[str, Any]) -> Location:
    return Location(url=url, options=options)


__all__ = ["Location", "StorageError", "expand", "is_url", "open_location", "read_url"]
