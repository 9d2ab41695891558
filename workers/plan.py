"""The shard plan: the corpus as consecutive runs of cuts up to a target of audio hours.

A plan is a folder: one object of cuts for each shard, `refused.jsonl` with the utterances left out and why, and
`plan.json`, written last. It depends on the corpus and the settings alone, so planning again changes nothing.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mvqkd.storage.artifacts import read_json, write_json
from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.location import Location
from mvqkd.workers.cuts import Refused, cut_from_json, cut_to_json

if TYPE_CHECKING:
    from lhotse import MonoCut


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What the plan knows of a shard.

    `digest` is over the cuts' JSON; `path` is the object with the cuts, relative to the plan's folder.
    """

    position: int
    path: str
    digest: str
    num_cuts: int
    hours: float

    def name(self, contract_digest: str) -> str:
        """Name of the shard in the index table of a contract: position and digest, nothing that changes
        from one run of the same job to the next."""
        both = hashlib.sha256(f"{self.digest}/{contract_digest}".encode()).hexdigest()
        return f"shard-{self.position:06d}-{both[:12]}"

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A planned part of a corpus. `settings` are what it was planned with."""

    location: Location
    shards: tuple[Shard, ...]
    num_cuts: int
    hours: float
    num_refused: int
    settings: dict[str, object]


def make_plan(
    cuts: Iterable["MonoCut | Refused"],
    location: Location,
    *,
    shard_hours: float,
    settings: dict[str, object],
    reuse: bool = True,
    progress: Callable[[int, float], None] | None = None,
) -> Plan:
    """Plan a corpus in one pass and in the memory of one shard and of the lines about refused utterances.

    Args:
        cuts: from `Corpus.cuts`.
        location: the plan's folder.
        shard_hours: a shard is closed before it would exceed this.
        settings: what the corpus was read with.
        reuse: return an existing plan of the same settings as it is; otherwise the corpus is read again, and
            an unchanged one gives the same plan, byte for byte.
        progress: called with cuts and hours so far after each shard.

    Raises:
        ValueError: cut ids repeat inside a shard, or no cut is usable.
    """
    settings = {**settings, "shard_hours": shard_hours}
    existing = read_plan(location) if reuse else None
    if existing is not None and existing.settings == settings:
        return existing
    shards: list[Shard] = []
    refused_lines, first_reasons, num_refused = bytearray(), [], 0
    waiting: list[MonoCut] = []
    waiting_s = 0.0

    def close() -> None:
        repeated, count = Counter(cut.id for cut in waiting).most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"cut id {repeated!r} occurs {count} times in shard {len(shards)}; ids must be unique"
            )
        shards.append(write_shard_cuts(location, len(shards), waiting))
        if progress:
            progress(sum(s.num_cuts for s in shards), sum(s.hours for s in shards))

    for cut in cuts:
        if isinstance(cut, Refused):
            refused_lines += (json.dumps(asdict(cut), ensure_ascii=False) + "\n").encode()
            num_refused += 1
            if num_refused <= 3:
                first_reasons.append(f"{cut.cut_id} {cut.reason}")
            continue
        if waiting and waiting_s + cut.duration > shard_hours * 3600:
            close()
            waiting, waiting_s = [], 0.0
        waiting.append(cut)
        waiting_s += cut.duration
    if waiting:
        close()
    if not shards:
        reasons = "; ".join(first_reasons)
        raise ValueError(f"no utterance of the corpus can be used: {num_refused} refused: {reasons}")
    location.replace("refused.jsonl", bytes(refused_lines))
    plan = Plan(
        location=location,
        shards=tuple(shards),
        num_cuts=sum(s.num_cuts for s in shards),
        hours=sum(s.hours for s in shards),
        num_refused=num_refused,
        settings=settings,
    )
    content = {"settings": settings, "num_refused": num_refused, "shards": [s.to_dict() for s in shards]}
    write_json(location, "plan.json", content)
    return plan


def read_plan(location: Location) -> Plan | None:
    """The plan in a folder, or None when there is none."""
    try:
        content = read_json(location, "plan.json")
    except ObjectMissingError:
        return None
    shards = tuple(Shard(**shard) for shard in content["shards"])
    return Plan(
        location=location,
        shards=shards,
        num_cuts=sum(s.num_cuts for s in shards),
        hours=sum(s.hours for s in shards),
        num_refused=content["num_refused"],
        settings=content["settings"],
    )


def write_shard_cuts(plan: Location, position: int, cuts: Sequence["MonoCut"]) -> Shard:
    """Write the cuts of one shard into the plan's folder; the same cuts give the same bytes and name."""
    text = "".join(cut_to_json(cut) + "\n" for cut in cuts).encode()
    digest = hashlib.sha256(text).hexdigest()
    path = f"cuts-{position:06d}-{digest[:12]}.jsonl.gz"
    packed = io.BytesIO()
    # No time stamp and no name in the gzip header: the same bytes every time.
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as file:
        file.write(text)
    plan.write_once(path, packed.getvalue())
    hours = sum(cut.duration for cut in cuts) / 3600
    return Shard(position=position, path=path, digest=digest, num_cuts=len(cuts), hours=hours)


def read_shard_cuts(plan: Location, shard: Shard) -> Iterator["MonoCut"]:
    """The cuts of a shard, in plan order.

    Raises:
        StorageError: the plan's object is gone.
        ValueError: the object is not what the plan says.
    """
    where, packed = plan.full_url(shard.path), plan.read_bytes(shard.path)
    try:
        text = gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{where}: damaged since it was planned ({error}); delete the plan and plan again"
        ) from error
    if hashlib.sha256(text).hexdigest() != shard.digest:
        raise ValueError(f"{where}: changed since it was planned; delete the plan and plan again")
    # Not splitlines: transcripts may hold characters that it takes for line ends, such as U+2028.
    for line in text.decode().split("\n")[:-1]:
        yield cut_from_json(line)
