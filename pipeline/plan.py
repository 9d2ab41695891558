"""The shard plan: the corpus as consecutive runs of cuts up to a target of audio hours.

A plan is a folder: one object of cuts for each shard, `refused.jsonl` with the utterances left out and why, and
`plan.json`, written last. It depends on the corpus and the settings alone, so planning again changes nothing.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from lhotse import MonoCut

from storage.artifacts import read_json, write_json
from storage.errors import ObjectMissingError
from storage.filesystem import Location
from workers.corpus import Refused
from workers.shards import Shard, write_shard_cuts


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
    cuts: Iterable[MonoCut | Refused],
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
