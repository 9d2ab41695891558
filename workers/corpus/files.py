"""Bytes of the corpus, wherever they are: whole files, lines of text files, utterances inside tar files."""

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from mvqkd.storage.errors import ObjectMissingError, StorageError
from mvqkd.storage.location import open_location

Answer = TypeVar("Answer")

_PART = re.compile(r"(?P<url>.+)#bytes=(?P<start>\d+)-(?P<end>\d+)")


class CorpusError(ValueError):
    """The corpus as a whole cannot be read; the message names the file and the remedy."""


def part_of(url: str, start: int, end: int) -> str:
    """The name of bytes `start` to `end` (exclusive) of a file, as `fetch` takes it."""
    return f"{url}#bytes={start}-{end}"


def fetch(url: str, options: Mapping[str, Any]) -> bytes:
    """The bytes of a file, or of the part of it that `part_of` names.

    Args:
        url: a local path, or `s3://`, or any other url that fsspec knows.
        options: of the storage section, for `s3://`.

    Raises:
        FileNotFoundError: there is no such file, or it is shorter than the part asked for.
        StorageError, OSError: the store cannot be reached. That says nothing about the file, so it must not
            be taken for a bad utterance.
    """
    match = _PART.fullmatch(url)
    if match is None:
        if not url.startswith("s3://"):
            with fsspec.open(url, "rb") as file:
                return file.read()
        folder, _, name = url.rpartition("/")
        try:
            return open_location(folder, options=options).read_bytes(name)
        except ObjectMissingError as error:
            raise FileNotFoundError(str(error)) from error
    start, end = int(match["start"]), int(match["end"])
    filesystem, path = _filesystem(match["url"], options)
    data = filesystem.cat_file(path, start=start, end=end)
    if len(data) != end - start:
        raise FileNotFoundError(f"{url}: the file ends before; plan again")
    return data


def open_binary(url: str, options: Mapping[str, Any]) -> Any:
    """A file that is read in pieces and can be sought in.

    Raises:
        CorpusError: it is missing or cannot be read.
    """
    filesystem, path = _filesystem(url, options)
    try:
        return filesystem.open(path, "rb")
    except FileNotFoundError as error:
        raise CorpusError(
            f"{url}: no such file; see corpus.root and corpus.format in the run file"
        ) from error
    except OSError as error:
        raise CorpusError(
            f"{url}: cannot be read ({error}); check its permissions and the credentials"
        ) from error


class WatchedFile:
    """A binary file for libsndfile, which takes an exception of the file it reads from for its end.

    Args:
        file: open for reading.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.trouble: BaseException | None = None
        """What the file raised first; nothing is read from then on."""

    def read(self, size: int = -1) -> bytes:
        """As of any file, but b"" after trouble."""
        return self._watched(lambda: self._file.read(size), b"")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file, but 0 after trouble."""
        return self._watched(lambda: self._file.seek(offset, whence), 0)

    def tell(self) -> int:
        """As of any file, but 0 after trouble."""
        return self._watched(self._file.tell, 0)

    def _watched(self, call: Callable[[], Answer], otherwise: Answer) -> Answer:
        if self.trouble is not None:
            return otherwise
        try:
            return call()
        # What s3fs cannot translate comes as botocore's own.
        except (OSError, StorageError, BotoCoreError, ClientError) as error:
            self.trouble = error
            return otherwise


def read_lines(url: str, options: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and lines of a UTF-8 text file, perhaps gzipped, without ever holding it whole.

    Raises:
        CorpusError: the file is missing, truncated or not UTF-8; it names the line.
    """
    number = 0
    with open_binary(url, options) as raw:
        packed = gzip.GzipFile(fileobj=raw) if url.endswith(".gz") else raw
        try:
            for number, line in enumerate(io.TextIOWrapper(packed, encoding="utf-8-sig"), start=1):
                yield number, line
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise CorpusError(
                f"{url}:{number + 1}: cannot be read ({error}); the file is damaged, write it again"
            ) from error


def full_path(url: str) -> str:
    """Absolute, with `~` as the home folder, as processes in other working directories need it."""
    return url if "://" in url else str(Path(os.path.expanduser(url)).absolute())  # noqa: PTH111 (never raises)


def _filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of this process for the url, and the path in it."""
    location = open_location(url, options=options if url.startswith("s3://") else {})
    return location.filesystem, location.base_path
