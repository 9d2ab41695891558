"""The shards of a plan: a line of JSON for each, in objects of some thousands, read when they are asked for.

A plan of 1,000,000 hours has 200,000 shards; most commands need to know how many there are, and no more.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.location import Location
from mvqkd.workers.shard import PlanError, Shard, path_of

SHARDS_PER_PART = 5000

_PLAN_AGAIN = "run `mvqkd plan` again"


@dataclass(frozen=True, kw_only=True)
class Part:
    """An object with the records of consecutive shards; `digest` is the SHA-256 of its bytes."""

    path: str
    digest: str
    num_shards: int


class Shards(Sequence[Shard]):
    """The shards of a plan in order. How many there are is known at once; a part is read when a shard of it is asked
    for, and kept until one of another part is.

    Args:
        location: the plan's folder.
        parts: of all shards, in order.
    """

    def __init__(self, location: Location, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._location = location
        self._ends = list(accumulate(part.num_shards for part in self.parts))
        self._read: tuple[int, list[Shard]] | None = None  # number and shards of the part read last

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Shard: ...

    @overload
    def __getitem__(self, index: slice) -> list[Shard]: ...

    def __getitem__(self, index: int | slice) -> Shard | list[Shard]:
        """Raises `PlanError` when the part is gone or damaged."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        number = next(n for n, end in enumerate(self._ends) if position < end)
        return self._part(number)[position - self._first(number)]

    def __iter__(self) -> Iterator[Shard]:
        """Raises `PlanError` when a part is gone or damaged."""
        for number in range(len(self.parts)):
            yield from self._part(number)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _first(self, number: int) -> int:
        return self._ends[number] - self.parts[number].num_shards

    def _part(self, number: int) -> list[Shard]:
        if self._read is None or self._read[0] != number:
            self._read = (number, self._shards_of(number))
        return self._read[1]

    def _shards_of(self, number: int) -> list[Shard]:
        part, first = self.parts[number], self._first(number)
        where = self._location.full_url(part.path)
        try:
            data = self._location.read_bytes(part.path)
        except ObjectMissingError as error:
            raise PlanError(f"{where}: missing, though plan.json names it; {_PLAN_AGAIN}") from error
        lines = data.split(b"\n")[:-1]
        if hashlib.sha256(data).hexdigest() != part.digest or len(lines) != part.num_shards:
            raise PlanError(f"{where}: changed since it was planned; {_PLAN_AGAIN}")
        return [_shard(position, json.loads(line)) for position, line in enumerate(lines, start=first)]


class ShardsWriter:
    """Writes the records of a plan's shards as they come, in the memory of one part and 8 bytes for each shard.

    Args:
        location: the plan's folder.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._parts: list[Part] = []
        self._lines: list[str] = []  # of the part that is being filled
        self.num_cuts = array("q")
        """Of each shard."""
        self.hours = 0.0
        """Of all of them."""

    def __len__(self) -> int:
        return len(self.num_cuts)

    def add(self, shard: Shard) -> None:
        """The next shard."""
        assert shard.position == len(self), "shards come in order"
        self._lines.append(_record(shard))
        self.num_cuts.append(shard.num_cuts)
        self.hours += shard.hours
        if len(self._lines) == SHARDS_PER_PART:
            self._close()

    def finish(self) -> Shards:
        """Write what is left; all shards, to be read."""
        if self._lines:
            self._close()
        return Shards(self._location, self._parts)

    def _close(self) -> None:
        data = "".join(f"{line}\n" for line in self._lines).encode()
        digest = hashlib.sha256(data).hexdigest()
        path = f"shards-{len(self) - len(self._lines):06d}-{digest[:12]}.jsonl"
        self._location.write_once(path, data)
        self._parts.append(Part(path=path, digest=digest, num_shards=len(self._lines)))
        self._lines = []


def _record(shard: Shard) -> str:
    """What the shard's place does not say."""
    record: dict[str, Any] = {"digest": shard.digest, "num_cuts": shard.num_cuts, "hours": shard.hours}
    if shard.content != shard.digest:
        record["content"] = shard.content
    return json.dumps(record, separators=(",", ":"))


def _shard(position: int, record: dict[str, Any]) -> Shard:
    content = record.get("content", record["digest"])
    return Shard(
        position=position,
        path=path_of(position, content),
        digest=record["digest"],
        content=content,
        num_cuts=record["num_cuts"],
        hours=record["hours"],
    )
