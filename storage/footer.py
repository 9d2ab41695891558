"""The footer of a Parquet file, and a checksum of it, which the format itself does not have.

Pages have checksums, but nothing would notice a flipped bit in a footer: sizes would be other ones, and some crash the
reader. So a file of ours has a mark and a CRC between its pages and its footer, where readers do not look: they find
the footer from the end of the file. Files of earlier versions, and those that another program wrote again, have none.
"""

import io
import struct
import zlib

TAIL_BYTES = 16 * 1024
"""Of a file that are fetched to find its footer: 3 kB, a few kB of summary, and room for what is added later."""

MAGIC = b"PAR1"
_MARK = b"mvqkdcrc"
_SEAL_BYTES = len(_MARK) + 4
_ENDING_BYTES = 8  # length of the footer, then the magic


class FooterError(ValueError):
    """No whole footer."""


def sealed(data: bytes | memoryview) -> bytes:
    """A Parquet file with the checksum of its footer; the file, which may be large, is copied once."""
    view = memoryview(data)
    start = len(view) - _ENDING_BYTES - _length(view)
    seal = _MARK + struct.pack("<I", zlib.crc32(view[start:-_ENDING_BYTES]))
    return b"".join((view[:start], seal, view[start:]))


def read_footer(source: io.RawIOBase | io.BytesIO) -> bytes:
    """The footer and what follows it, by one read of the file's end; by two when the footer is a long one.

    Raises:
        FooterError: the file is truncated, no Parquet, or its footer is not the one that was written.
    """
    size = source.seek(0, io.SEEK_END)
    source.seek(max(0, size - TAIL_BYTES))
    tail = source.read(TAIL_BYTES) or b""
    if len(tail) < _ENDING_BYTES or not tail.endswith(MAGIC):
        raise FooterError(f"{size} bytes that do not end with {MAGIC.decode()}")
    length = _length(tail) + _ENDING_BYTES
    if length > size:
        raise FooterError(f"its footer of {length} bytes is longer than the file")
    wanted = min(size, length + _SEAL_BYTES)
    if wanted > len(tail):
        source.seek(size - wanted)
        tail = (source.read(wanted - len(tail)) or b"") + tail
    _check(tail, length)
    return tail[-length:]


def _length(data: bytes | memoryview) -> int:
    """Of the footer, as the end of the file has it."""
    length: int = struct.unpack("<I", data[-_ENDING_BYTES : -len(MAGIC)])[0]
    return length


def _check(tail: bytes, length: int) -> None:
    expected = len(tail) - length - _SEAL_BYTES
    # The length, which says where the footer begins, may be what is damaged. The mark alone may be somebody's name.
    found = tail.rfind(_MARK)
    if _seal_is_right(tail, expected) is False or (found != expected and _seal_is_right(tail, found)):
        raise FooterError("its footer does not have the checksum that was written with it")


def _seal_is_right(tail: bytes, place: int) -> bool | None:
    """Whether the checksum here is that of what follows; None where there is no mark."""
    if place < 0 or not tail.startswith(_MARK, place):
        return None
    footer = tail[place + _SEAL_BYTES : -_ENDING_BYTES]
    return tail[place + len(_MARK) : place + _SEAL_BYTES] == struct.pack("<I", zlib.crc32(footer))
