"""The quantizer's training sample: spread over the whole corpus, with a part held out by speaker."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lhotse import MonoCut

from mvqkd.storage.location import Location
from mvqkd.workers.cuts import cut_from_json, speaker_of, unperturbed_id
from mvqkd.workers.shard import Shard, read_shard

MAX_SHARDS = 256


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Cuts to fit on and cuts to judge by; `held_out` says what no two of them share.

    `speakers`; `recordings`, where some speakers are unknown; `utterances`, where all is of one speaker.
    """

    train: tuple[MonoCut, ...]
    valid: tuple[MonoCut, ...]
    held_out: str


def draw_sample(
    plan: Location, shards: Sequence[Shard], *, hours: float, valid_fraction: float, seed: int
) -> Sample:
    """Draw about `hours` of audio from all over the planned corpus.

    At most 256 evenly spaced shards are read, so the cost does not grow with the corpus; inside them a cut is
    taken by a hash of its id, and the sample is ordered by id, so it does not depend on the corpus' order.

    Raises:
        ValueError: fewer than two cuts came out.
    """
    cuts = draw_cuts(plan, shards, hours=hours, seed=seed)
    if len(cuts) < 2:
        raise ValueError(
            f"quantizer.sample_hours {hours:g} gives {len(cuts)} utterances of {plan.url}; "
            "raise it, at least two are needed"
        )
    keys = [speaker_of(cut) or unperturbed_id(cut.recording.id, cut) for cut in cuts]
    kind = "speakers" if all(map(speaker_of, cuts)) else "recordings"
    if len(set(keys)) == 1:
        keys, kind = [unperturbed_id(cut.id, cut) for cut in cuts], "utterances"
    order = sorted(set(keys), key=lambda key: (_uniform(f"{seed}/valid/{key}"), key))
    count = Counter(keys)
    held_out: set[str] = set()
    num_held_out = 0
    for key in order[:-1]:
        held_out.add(key)
        num_held_out += count[key]
        if num_held_out >= valid_fraction * len(keys):
            break
    return Sample(
        train=tuple(cut for cut, key in zip(cuts, keys, strict=True) if key not in held_out),
        valid=tuple(cut for cut, key in zip(cuts, keys, strict=True) if key in held_out),
        held_out=kind,
    )


def draw_cuts(
    plan: Location, shards: Sequence[Shard], *, hours: float, seed: int, max_shards: int | None = None
) -> list[MonoCut]:
    """About `hours` of audio from all over the planned corpus, ordered by id; see `draw_sample`."""
    most = MAX_SHARDS if max_shards is None else max_shards
    stride = max(1, len(shards) / most)
    chosen = [shards[int(i * stride)] for i in range(min(len(shards), most))]
    share = hours / sum(shard.hours for shard in chosen)
    # Only what is taken becomes a cut, which costs ten times as much as to read its id.
    cuts = [
        cut_from_json(line)
        for shard in chosen
        for line in read_shard(plan, shard)
        if _uniform(f"{seed}/{json.loads(line)['id']}") < share
    ]
    return sorted(cuts, key=lambda cut: cut.id)


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
