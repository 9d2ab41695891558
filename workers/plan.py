"""The shard plan: the corpus as consecutive runs of cuts up to a target of audio hours.

A plan is a folder: one object of cuts for each shard, objects with what is known of some thousand shards each
(`workers.shards`), `refused.jsonl` with the utterances left out and why, `text_dropped.jsonl` with those whose
transcript is not used and why, and `plan.json` with settings and totals, written last. It depends on the corpus and the
settings alone, so planning again changes nothing. Paths of audio under `corpus.root` are kept relative to it: where the
audio lies is not what it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mvqkd.storage.artifacts import read_json, write_json
from mvqkd.storage.errors import ArtifactError, ObjectMissingError
from mvqkd.storage.location import Location
from mvqkd.workers.cuts import Refused
from mvqkd.workers.shard import (
    PlanError,
    Shard,
    read_shard_cuts,
)
from mvqkd.workers.shards import Part, Shards
from mvqkd.workers.spool import read_lines_of

VERSION = 3
_RATE_OF_VERSION_1_HZ = 16_000

REFUSED, TEXT_DROPPED = "refused", "text_dropped"

_PLAN_AGAIN = "delete it and run `mvqkd plan` again"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A planned part of a corpus.

    `settings` are what it was planned with, `root` where the corpus was then, and `num_text_dropped` counts the
    cuts with codes whose texts are not what is said in them. `version` is that of `plan.json`. `shards` are read when
    they are asked for; their number is known.
    """

    location: Location
    shards: Sequence[Shard]
    num_cuts: int
    hours: float
    num_refused: int
    num_text_dropped: int
    settings: dict[str, object]
    root: str | None
    version: int = VERSION


def existing_plan(
    location: Location, *, shard_hours: float, settings: dict[str, object], root: str | None
) -> Plan | None:
    """The plan in a folder if it was made with these settings, see `make_plan`.

    Raises:
        PlanError: `plan.json` is damaged, or of a later version.
    """
    found = read_plan(location)
    wanted = (plan_settings(settings, shard_hours), root)
    return found if found is not None and (found.settings, found.root) == wanted else None


def plan_settings(settings: dict[str, object], shard_hours: float) -> dict[str, object]:
    """What a plan is made with, as `plan.json` has it."""
    return {**_without_root(settings)[0], "shard_hours": shard_hours}


def write_plan(plan: Plan) -> None:
    """Write `plan.json`, which is the plan's commit; its `shards` are from a `ShardsWriter`."""
    assert isinstance(plan.shards, Shards), "written before"
    content = {
        "version": VERSION,
        "settings": plan.settings,
        "root": plan.root,
        "num_shards": len(plan.shards),
        "num_cuts": plan.num_cuts,
        "hours": plan.hours,
        "num_refused": plan.num_refused,
        "num_text_dropped": plan.num_text_dropped,
        "parts": [asdict(part) for part in plan.shards.parts],
    }
    write_json(plan.location, "plan.json", content)


def read_plan(location: Location) -> Plan | None:
    """The plan in a folder, of this or an earlier version; None when there is none.

    Raises:
        PlanError: `plan.json` is damaged, or of a later version.
    """
    where = location.full_url("plan.json")
    try:
        content = read_json(location, "plan.json")
        version = content.get("version", 1)
        if version not in (1, 2, VERSION):
            raise PlanError(
                f"{where}: of version {version}, this program reads up to {VERSION}; {_PLAN_AGAIN}"
            )
        shards, num_cuts, hours = (_shards if version == VERSION else _shards_of_old)(location, content)
        settings, root = content["settings"], content.get("root")
        if version == 1:
            settings, root = _settings_of_version_1(settings)
        return Plan(
            location=location,
            shards=shards,
            num_cuts=num_cuts,
            hours=hours,
            num_refused=content["num_refused"],
            num_text_dropped=content.get("num_text_dropped", 0),
            settings=settings,
            root=root,
            version=version,
        )
    except ObjectMissingError:
        return None
    except (ArtifactError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{where}: not a plan ({error}); {_PLAN_AGAIN}") from error


def read_refused(location: Location) -> list[Refused]:
    """The utterances that a plan leaves out, with the reasons.

    Raises:
        StorageError: there is no plan.
        PlanError: a file is damaged.
    """
    try:
        return [Refused(**line) for line in read_lines_of(location, REFUSED)]
    except TypeError as error:
        raise PlanError(
            f"{location.full_url(REFUSED)}.jsonl: damaged since it was planned ({error}); {_PLAN_AGAIN}"
        ) from error


def _shards(location: Location, content: Mapping[str, Any]) -> tuple[Sequence[Shard], int, float]:
    """Shards, cuts and hours."""
    shards = Shards(location, [Part(**part) for part in content["parts"]])
    if len(shards) != content["num_shards"]:
        raise TypeError(f"num_shards is {content['num_shards']}, the parts have {len(shards)}")
    return shards, content["num_cuts"], content["hours"]


def _shards_of_old(location: Location, content: Mapping[str, Any]) -> tuple[Sequence[Shard], int, float]:
    """Versions 1 and 2 had all shards in `plan.json`; 1 named them by their content alone."""
    shards = tuple(Shard(**{"content": shard["digest"], **shard}) for shard in content["shards"])
    return shards, sum(s.num_cuts for s in shards), sum(s.hours for s in shards)


def _without_root(settings: dict[str, object]) -> tuple[dict[str, object], str | None]:
    """Settings without `corpus.root`, which says where things lie, and the root."""
    corpus = settings.get("corpus")
    if not isinstance(corpus, dict) or "root" not in corpus:
        return settings, None
    return {**settings, "corpus": {k: v for k, v in corpus.items() if k != "root"}}, corpus["root"]


def _settings_of_version_1(settings: dict[str, object]) -> tuple[dict[str, object], str | None]:
    """Settings and full root as this version has them."""
    from mvqkd.workers.corpus.paths import full_root

    settings, root = _without_root(settings)
    if "corpus" in settings:
        settings = {"sample_rate_hz": _RATE_OF_VERSION_1_HZ, **settings}
    return settings, full_root(root)


__all__ = [
    "Plan",
    "PlanError",
    "Shard",
    "existing_plan",
    "read_plan",
    "read_refused",
    "read_shard_cuts",
    "write_plan",
]
