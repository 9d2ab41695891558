"""Cut ids that occur more than once in a corpus, found in the memory of 8 bytes for each cut."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class _Repeated:
    """An id that several cuts have, with (shard, position in the shard) of each."""

    cut_id: str
    places: tuple[tuple[int, int], ...]


class CutIds:
    """Collects the ids of a corpus' cuts in order, as hashes."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, cut_id: str) -> None:
        """The id of the next cut."""
        self._hashes.append(_hash(cut_id))

    def problem(self, shard_sizes: Sequence[int], read: Callable[[int], list[dict[str, Any]]]) -> str | None:
        """Which ids occur more than once, and where; None when none does.

        Args:
            shard_sizes: how many of the cuts each shard has, in order.
            read: the cuts of a shard by its number, as JSON.
        """
        repeated = self._repeated(shard_sizes, lambda number: [cut["id"] for cut in read(number)])
        if not repeated:
            return None
        words = []
        for one in repeated:
            places = [
                f"shard {shard} cut {position} ({_audio_of(read(shard)[position])})"
                for shard, position in one.places[:2]
            ]
            words.append(f"{one.cut_id!r} occurs {len(one.places)} times: {' and '.join(places)}")
        return f"cut id {'; '.join(words)}; ids must be unique: rename the cuts, or remove all but one"

    def _repeated(
        self, shard_sizes: Sequence[int], read_ids: Callable[[int], list[str]]
    ) -> "list[_Repeated]":
        """Up to three ids. Those whose hashes are equal are read again, so that two different ones are never
        taken for the same."""
        import numpy as np

        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        ends = np.cumsum(shard_sizes)
        found: list[_Repeated] = []
        for run in _runs(equal):
            cuts = order[run[0] : run[-1] + 2]
            shards = np.searchsorted(ends, cuts, side="right")
            places: dict[str, list[tuple[int, int]]] = {}
            for shard in np.unique(shards):
                ids = read_ids(int(shard))
                for position in cuts[shards == shard] - (ends[shard] - shard_sizes[shard]):
                    places.setdefault(ids[position], []).append((int(shard), int(position)))
            found += [_Repeated(cut_id=i, places=tuple(p)) for i, p in places.items() if len(p) > 1]
            if len(found) >= _NAMED:
                break
        return found[:_NAMED]


def _runs(numbers: "np.ndarray") -> Iterator["np.ndarray"]:
    """Consecutive numbers, together."""
    import numpy as np

    return iter(np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)) if len(numbers) else iter(())


def _hash(cut_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(cut_id.encode(), digest_size=8).digest(), "little")


def _audio_of(cut: dict[str, Any]) -> str:
    sources = cut["recording"]["sources"]
    return sources[0]["source"] if sources else cut["recording"]["id"]
