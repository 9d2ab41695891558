"""A manifest in blocks of whole lines, so that its lines can be parsed elsewhere, and the lines of a block."""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mvqkd.storage.errors import StorageError
from mvqkd.workers.corpus.files import CorpusError, damaged, open_binary

BLOCK_BYTES = 2**20
_READ_BYTES = 2**16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Block:
    """Whole lines of a file; the first one has the number `first_line`, from 1. Lines end with a line feed."""

    url: str
    first_line: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, str]]:
        """Numbers and lines without their ends, those with nothing in them left out.

        Raises:
            CorpusError: a line is not UTF-8; it names the line.
        """
        try:
            text = self.data.decode()
        except UnicodeDecodeError as error:
            number = self.first_line + self.data.count(b"\n", 0, error.start)
            raise damaged(self.url, number, error) from error
        # Not splitlines: texts may hold characters that it takes for line ends, such as U+2028.
        for number, line in enumerate(text.split("\n"), start=self.first_line):
            if line and not line.isspace():
                yield number, line


def read_blocks(url: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """A text file, perhaps gzipped, in blocks of about a MiB; every kind of line end becomes a line feed.

    Raises:
        CorpusError: the file is missing, damaged or truncated; it names the line.
    """
    first_line, rest = 1, b""
    with open_binary(url, options) as raw:
        file = gzip.GzipFile(fileobj=raw) if url.endswith(".gz") else raw
        begun = False
        while True:
            # Twice the rest, so that a line of many blocks is not copied once for each of them.
            pieces, size, wanted = [rest], len(rest), max(BLOCK_BYTES, 2 * len(rest))
            try:
                while size < wanted and (piece := file.read(_READ_BYTES)):
                    pieces.append(piece)
                    size += len(piece)
            except (OSError, EOFError, zlib.error, StorageError) as error:
                before = b"".join(pieces).count(b"\n")
                raise damaged(url, first_line + before, error) from error
            data = b"".join(pieces)
            if not begun:
                data, begun = data.removeprefix(_BYTE_ORDER_MARK), True
            if size < wanted:
                if data:
                    yield Block(url=url, first_line=first_line, data=_with_line_feeds(data))
                return
            # A carriage return at the very end may belong to a line feed that is still to come.
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
            whole, rest = _with_line_feeds(data[:end]), data[end:]
            if whole:
                yield Block(url=url, first_line=first_line, data=whole)
            first_line += whole.count(b"\n")


def _with_line_feeds(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


__all__ = ["Block", "CorpusError", "read_blocks"]
