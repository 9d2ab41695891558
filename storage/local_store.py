"""Objects in a local folder, with the commit rule of an object store: whole or not there at all."""

import builtins
import errno
import io
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from mvqkd.storage.entry import Entry
from mvqkd.storage.errors import ObjectMissingError, ObjectTooShortError, StorageError, StoreOutageError

_TEMP_SUFFIX = ".tmp"
# Name, host, process, thread: by these `sweep` tells a leftover from a write in progress.
_TEMP_NAME = re.compile(r"\..+\.(?P<host>[^.]*)\.(?P<pid>\d{1,10})\.\d+" + re.escape(_TEMP_SUFFIX), re.DOTALL)
_ABANDONED_S = 7 * 24 * 3600
# So much of an object's name stands in that of its temporary, which is longer and must fit the file system too.
_NAME_IN_TEMP = 40
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Answers of file systems without hard links (FAT, some network mounts).
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """Reads and writes below the root directory; `path` arguments are absolute paths in it."""

    @cached_property
    def filesystem(self) -> Any:
        """The fsspec file system."""
        import fsspec  # here, because it takes longer to import than a listing takes

        return fsspec.filesystem("file")

    def exists(self, path: str) -> bool:
        """Whether an object (a regular file) is there. Raises `StorageError` when that cannot be seen."""
        try:
            self.size(path)
        except ObjectMissingError:
            return False
        except StorageError as error:
            # A folder there, or a file above it, is no object either; what is closed to us may be one.
            if isinstance(error.__cause__, IsADirectoryError | NotADirectoryError):
                return False
            raise
        return True

    def size(self, path: str) -> int:
        """Bytes of the object. Raises `ObjectMissingError` or `StorageError`."""
        with _translated(path):
            status = Path(path).stat()
            if not stat.S_ISREG(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            return status.st_size

    def read(self, path: str) -> bytes:
        """The whole object. Raises `ObjectMissingError` or `StorageError`."""
        with _translated(path):
            return Path(path).read_bytes()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` (exclusive).

        Raises:
            ObjectTooShortError: the object ends before; `ObjectMissingError` or `StorageError` for the rest.
        """
        with self.open(path) as file:
            file.seek(start)
            data = file.read(end - start) or b""
        if len(data) != end - start:
            raise ObjectTooShortError(
                path, f"the file ends before byte {end}", "it was replaced by another one, or cut short"
            )
        return data

    def open(self, path: str, *, head: int = 0, tail: int = 0) -> io.FileIO:
        """The file itself, whose reads raise `StorageError`; `head` and `tail` are for stores far away."""
        with _translated(path):
            return _LocalFile(path)

    def write_once(self, path: str, data: bytes) -> bool:
        """Commit `data` under `path` unless something is committed there; True when this call did it."""
        return self._commit(path, data, _publish_new)

    def replace(self, path: str, data: bytes) -> None:
        """Commit `data` under `path`, replacing what is there in one step."""
        self._commit(path, data, _publish_over)

    def list(self, path: str) -> dict[str, Entry]:
        """The objects directly in the folder by name; empty when there is none."""
        found: dict[str, Entry] = {}
        with _translated(path):
            for entry in self._scan(path):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # another process removed it after the listing
                found[entry.name] = Entry(status.st_size, status.st_mtime)
        return dict(sorted(found.items()))

    def names(self, path: str) -> "builtins.list[str]":
        """The names alone, sorted; of many objects in a fraction of the time, since none is looked at."""
        with _translated(path):
            return sorted(entry.name for entry in self._scan(path))

    def _scan(self, path: str) -> Iterator["os.DirEntry[str]"]:
        try:
            entries = os.scandir(path)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if not entry.name.endswith(_TEMP_SUFFIX) and entry.is_file():
                    yield entry

    def remove(self, path: str) -> None:
        """Delete the object; nothing happens when it is not there."""
        with _translated(path):
            Path(path).unlink(missing_ok=True)

    def sweep(self, path: str) -> int:
        """Delete temporaries in the folder whose writers are gone; returns how many.

        Those of this host whose process has ended, and those of any host that nobody wrote to for a week.
        """
        swept = 0
        with _translated(path):
            for temp in Path(path).glob(f".*{_TEMP_SUFFIX}") if Path(path).is_dir() else ():
                match = _TEMP_NAME.fullmatch(temp.name)
                if match and (
                    (match["host"] == _host() and not _alive(int(match["pid"])))
                    # Of a host or container that is gone for good. No write takes as long as that.
                    or time.time() - _modified(temp) > _ABANDONED_S
                ):
                    temp.unlink(missing_ok=True)
                    swept += 1
        return swept

    def _commit(self, path: str, data: bytes, publish: Callable[[Path, Path], bool]) -> bool:
        target = Path(path)
        unique = f"{_host()}.{os.getpid()}.{threading.get_ident()}"
        temp = target.with_name(f".{target.name[:_NAME_IN_TEMP]}.{unique}{_TEMP_SUFFIX}")
        with _translated(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temp.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                published = publish(temp, target)
            finally:
                temp.unlink(missing_ok=True)
            _sync_directory(target.parent)
        return published


class _LocalFile(io.FileIO):
    """A file open for reading, whose errors are `StorageError`s that name it."""

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        with _translated(str(self.name)):
            return super().readinto(buffer)

    def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
        with _translated(str(self.name)):
            return super().read(-1 if size is None else size)

    def readall(self) -> bytes:
        with _translated(str(self.name)):
            return super().readall()


def _publish_new(temp: Path, target: Path) -> bool:
    # A hard link fails when the name is taken, so of two writers exactly one commits.
    try:
        os.link(temp, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():
            return False
        temp.replace(target)
    return True


def _publish_over(temp: Path, target: Path) -> bool:
    temp.replace(target)
    return True


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    """This host's name, and which of its process tables this is: containers may share the name, not the table."""
    try:
        processes = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 (no path of ours)
    except OSError:
        processes = 0  # not Linux
    return f"{socket.gethostname().replace('.', '-').replace('/', '-')}-{processes}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()  # published or swept by another process in this moment


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn operating system errors into `StorageError`s that name the path and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(
            path, "there is no such file", "check the path or run the stage before"
        ) from error
    except UnicodeEncodeError as error:
        raise ObjectMissingError(repr(path), "no file can have this name", "correct the path") from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            problem = f"no space left to write it ({error.strerror}), nothing was committed"
            remedy = "free space or choose another folder, then run the same command again"
            raise StoreOutageError(path, problem, remedy) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            problem = f"the system refuses access ({error.strerror})"
            remedy = "check owner and permissions, or choose another folder"
        elif error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
            problem = f"a file stands where a folder is needed, or the reverse ({error.strerror})"
            remedy = "remove it or choose another path"
        elif error.errno == errno.ENAMETOOLONG:
            problem, remedy = (
                f"the name is longer than the file system takes ({error.strerror})",
                "shorten it",
            )
        else:
            problem, remedy = f"input/output error ({error.strerror})", "check the disk, then run again"
        raise StorageError(path, problem, remedy) from error
