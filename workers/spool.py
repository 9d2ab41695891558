"""Lines of JSON about a plan, kept on disk while it is made, then written as objects of some megabytes each.

The first object is `NAME.jsonl`, the ones after it are `NAME-000001.jsonl` and so on; nearly always there is only the
first. So a corpus of which millions of cuts are refused takes no memory.
"""

import json
import tempfile
from collections.abc import Iterator
from typing import Any

from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.location import Location
from mvqkd.workers.shard import PlanError

OBJECT_BYTES = 16 * 2**20


class LinesSpool:
    """Lines of JSON, written when all are there.

    Args:
        location: the plan's folder.
        name: of the objects, without suffix.
    """

    def __init__(self, location: Location, name: str) -> None:
        self._location, self._name = location, name
        # The file has no name on disk, so nothing is left over when this process ends.
        self._file = tempfile.SpooledTemporaryFile(max_size=OBJECT_BYTES)  # noqa: SIM115
        self.num_lines = 0

    def add(self, content: dict[str, Any]) -> None:
        """The next line, with the escape of JSON for what is no character (half of a surrogate pair)."""
        line = json.dumps(content, ensure_ascii=False) + "\n"
        self._file.write(line.encode(errors="backslashreplace"))
        self.num_lines += 1

    def write(self) -> None:
        """Write all lines, over those of the plan before."""
        size, number = self._file.tell(), 0
        self._file.seek(0)
        while number == 0 or self._file.tell() < size:
            self._location.replace(_object(self._name, number), b"".join(self._next_lines()))
            number += 1
        while self._location.exists(_object(self._name, number)):
            self._location.remove(_object(self._name, number))
            number += 1

    def _next_lines(self) -> Iterator[bytes]:
        begin = self._file.tell()
        while self._file.tell() - begin < OBJECT_BYTES and (line := self._file.readline()):
            yield line


def read_lines_of(location: Location, name: str) -> Iterator[dict[str, Any]]:
    """The lines that a `LinesSpool` wrote.

    Raises:
        StorageError: there are none.
        PlanError: an object is damaged.
    """
    data, number = location.read_bytes(_object(name, 0)), 0
    while True:
        try:
            for line in data.decode().split("\n"):
                if line:
                    content = json.loads(line)
                    if not isinstance(content, dict):
                        raise TypeError(f"a line is {type(content).__name__}")
                    yield content
        except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            where = location.full_url(_object(name, number))
            raise PlanError(
                f"{where}: damaged since it was planned ({error}); delete it and run `mvqkd plan` again"
            ) from error
        number += 1
        try:
            data = location.read_bytes(_object(name, number))
        except ObjectMissingError:
            return


def _object(name: str, number: int) -> str:
    return f"{name}-{number:06d}.jsonl" if number else f"{name}.jsonl"
