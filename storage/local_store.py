"""Objects in a local folder, with the commit rule of an object store: whole or not there at all."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from mvqkd.storage.errors import ObjectMissingError, StorageError

_TEMP_SUFFIX = ".tmp"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Answers of file systems without hard links (FAT, some network mounts).
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """Reads and writes below the root directory; `path` arguments are absolute paths in it."""

    def __init__(self) -> None:
        self.filesystem = fsspec.filesystem("file")

    def exists(self, path: str) -> bool:
        """Whether an object (a regular file) is there."""
        return Path(path).is_file()

    def read(self, path: str) -> bytes:
        """The whole object. Raises `ObjectMissingError` or `StorageError`."""
        with _translated(path):
            return Path(path).read_bytes()

    def write_once(self, path: str, data: bytes) -> bool:
        """Commit `data` under `path` unless something is committed there; True when this call did it."""
        return self._commit(path, data, _publish_new)

    def replace(self, path: str, data: bytes) -> None:
        """Commit `data` under `path`, replacing what is there in one step."""
        self._commit(path, data, _publish_over)

    def list(self, path: str) -> dict[str, int]:
        """Names of the objects directly in the folder and their sizes in bytes; empty when there is none."""
        sizes: dict[str, int] = {}
        with _translated(path):
            try:
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except FileNotFoundError:
                return sizes
            for entry in entries:
                # Another process may remove an object between the listing and the look at it.
                with suppress(FileNotFoundError):
                    if not entry.name.endswith(_TEMP_SUFFIX) and entry.is_file():
                        sizes[entry.name] = entry.stat().st_size
        return sizes

    def remove(self, path: str) -> None:
        """Delete the object; nothing happens when it is not there."""
        with _translated(path):
            Path(path).unlink(missing_ok=True)

    def sweep(self, path: str) -> int:
        """Delete temporaries left in the folder by killed processes of this host; returns how many."""
        swept = 0
        for temp in Path(path).glob(f".*{_TEMP_SUFFIX}") if Path(path).is_dir() else ():
            fields = temp.name.split(".")
            host, pid = fields[-4], fields[-3]
            if host == _host() and pid.isdigit() and not _alive(int(pid)):
                temp.unlink(missing_ok=True)
                swept += 1
        return swept

    def _commit(self, path: str, data: bytes, publish: Callable[[Path, Path], bool]) -> bool:
        target = Path(path)
        # Host and process in the name let `sweep` tell a leftover from a write in progress.
        unique = f"{_host()}.{os.getpid()}.{threading.get_ident()}"
        temp = target.with_name(f".{target.name}.{unique}{_TEMP_SUFFIX}")
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
    return socket.gethostname().replace(".", "-")


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
    except OSError as error:
        if error.errno in _NO_SPACE:
            problem = f"no space left to write it ({error.strerror}), nothing was committed"
            remedy = "free space or choose another folder, then run the same command again"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            problem = f"the system refuses access ({error.strerror})"
            remedy = "check owner and permissions, or choose another folder"
        elif error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
            problem = f"a file stands where a folder is needed, or the reverse ({error.strerror})"
            remedy = "remove it or choose another path"
        else:
            problem, remedy = f"input/output error ({error.strerror})", "check the disk, then run again"
        raise StorageError(path, problem, remedy) from error
