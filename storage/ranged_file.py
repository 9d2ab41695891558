"""A file that lies far away, read like one that lies here: every read is a request for a range of its bytes."""

import io
from collections.abc import Callable


class RangedFile(io.RawIOBase):
    """A binary file that can be sought in.

    Args:
        read_range: fetches the bytes from a start to an end (exclusive), all of them, or raises.
        size: of the whole, in bytes.
        kept: a part that is there already, with its start; reads that begin in it take from it.
    """

    def __init__(
        self, read_range: Callable[[int, int], bytes], size: int, *, kept: tuple[int, bytes] = (0, b"")
    ) -> None:
        super().__init__()
        self._read_range, self._size, self._kept = read_range, size, kept
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, which may lie beyond the end. Raises ValueError for one before the start."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"cannot seek to byte {position}")
        self._position = position
        return position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes. Raises what `read_range` raises."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        start, kept = self._kept
        data = kept[self._position - start : end - start] if self._position >= start else b""
        if (reached := self._position + len(data)) < end:
            data += self._read_range(reached, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
