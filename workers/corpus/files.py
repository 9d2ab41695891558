"""Bytes of the corpus, wherever they are: whole files, lines of text files, utterances inside tar files."""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar

from mvqkd.storage.errors import BucketMissingError, ObjectMissingError, ObjectTooShortError, StorageError
from mvqkd.storage.location import Location, expand, open_location, read_url

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
    try:
        if match is None:
            return read_url(url, options=options)
        location, name = _locate(match["url"], options)
        return location.read_range(name, int(match["start"]), int(match["end"]))
    except ObjectMissingError as error:
        raise FileNotFoundError(str(error)) from error
    except ObjectTooShortError as error:
        raise FileNotFoundError(f"{url}: the file ends before; plan again") from error


def open_binary(url: str, options: Mapping[str, Any]) -> BinaryIO:
    """A file that is read in pieces and can be sought in; a read raises OSError or `StorageError`.

    Raises:
        CorpusError: it is missing or cannot be read.
    """
    location, name = _locate(url, options)
    try:
        return location.open(name)
    except (ObjectMissingError, BucketMissingError) as error:
        raise CorpusError(
            f"{url}: no such file; see corpus.root and corpus.format in the run file"
        ) from error
    except StorageError as error:
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
        # Whatever it is: out of a callback of libsndfile it would be lost, so it is kept for the caller to raise.
        except Exception as error:  # noqa: BLE001
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
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, StorageError) as error:
            raise damaged(url, number + 1, error) from error


def damaged(url: str, line: int, error: BaseException) -> CorpusError:
    """What to raise for a file that cannot be read from a line on."""
    return CorpusError(f"{url}:{line}: cannot be read ({error}); the file is damaged, write it again")


def full_path(url: str) -> str:
    """Absolute, as processes in other working directories need it."""
    return expand(url)


def _locate(url: str, options: Mapping[str, Any]) -> tuple[Location, str]:
    """The folder of a file and its name there."""
    folder, _, name = expand(url).rpartition("/")
    return open_location(folder or "/", options=options if url.startswith("s3://") else {}), name
