"""What a listing says of an object."""

from typing import NamedTuple


class Entry(NamedTuple):
    """Size in bytes and time of the last write, in seconds since 1970, by the clock of the store."""

    size: int
    modified: float
