"""Systems side by side: error rates with intervals, pairs, targets, settings, the worst utterances, speakers."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mvqkd import __version__
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.compare_summary import summary
from mvqkd.pipeline.stages.compare_system import System, read_system
from mvqkd.pipeline.stages.compare_words import table_of_speakers, worst_utterances
from mvqkd.storage.errors import ArtifactError, ContractError, TableError
from mvqkd.storage.location import Location, open_location

if TYPE_CHECKING:
    from mvqkd.workers.recognize.bootstrap import Bootstrap

WORST = 40
"""Utterances with the most errors that are shown, and as many with the largest differences."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that the page shows, as JSON values.

    Attributes:
        version, made: by which version of the program, and when (UTC).
        summary: what came out, in sentences; the first is the headline.
        reference: name of the system that the others are measured against; None without one that was decoded.
        best: name of the one with the lowest WER.
        systems: in order, `System.to_dict`.
        pairs: every decoded system against every other one, `bootstrap.Difference` with `system` and `other`, on the
            utterances that both recognized.
        settings: keys in which the systems differ, with the value of each.
        tables: of targets, with what they take.
        utterances: the worst ones with their alignments, `num_utterances` is of all.
        speakers: word errors of each by system.
        notes: what a reader must know before believing the figures.
    """

    version: str
    made: str
    summary: list[str]
    reference: str | None
    best: str | None
    systems: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    utterances: list[dict[str, Any]]
    num_utterances: int
    speakers: list[dict[str, Any]]
    notes: list[str]


def compare_runs(
    runs: Sequence[Run],
    *,
    students: Sequence[str] = (),
    reference: str | None = None,
    worst: int = WORST,
    made: datetime | None = None,
) -> Comparison:
    """Put the students of some runs side by side, those that are not ready as far as they are.

    Args:
        students: only these, by the names that they have in their runs; all by default.
        reference: name of a system; by default `baseline`, or the first one without targets, or the first one.
        worst: `WORST`.
        made: now by default.

    Raises:
        StageError: there is no such system.
        ArtifactError: a report is damaged.
    """
    reports = [run.reports.whole() for run in runs]
    systems = _systems(runs, reports, students)
    decoded = [system for system in systems if system.score is not None]
    chosen = _reference(systems, reference)
    best = min(decoded, key=lambda system: system.wer) if decoded else None
    utterances, num_utterances = worst_utterances(decoded, worst)
    pairs, tables = _pairs(decoded), _tables(runs, reports, systems)
    return Comparison(
        version=__version__,
        made=(made or datetime.now(UTC)).isoformat(timespec="seconds"),
        summary=summary(systems, best=best, reference=chosen, pairs=pairs, tables=tables),
        reference=None if chosen is None else chosen.name,
        best=None if best is None else best.name,
        systems=[system.to_dict() for system in systems],
        pairs=pairs,
        settings=_differing(systems),
        tables=tables,
        utterances=utterances,
        num_utterances=num_utterances,
        speakers=table_of_speakers(decoded),
        notes=_notes(decoded),
    )


def _systems(
    runs: Sequence[Run], reports: Sequence[Mapping[str, Any]], students: Sequence[str]
) -> list[System]:
    chosen = [
        [student for student in run.config.student_names() if not students or student in students]
        for run in runs
    ]
    count = Counter(student for each in chosen for student in each)
    is_unique = max(count.values(), default=0) == 1
    found = []
    for run, run_name, report, mine in zip(runs, _run_names(runs), reports, chosen, strict=True):
        for student in mine:
            name = student if is_unique else f"{run_name}/{student}"
            found.append(read_system(run, student, name=name, report=report))
    missing = [name for name in students if name not in {system.student for system in found}]
    if missing or not found:
        known = sorted({name for run in runs for name in run.config.student_names()})
        raise StageError(f"no student {', '.join(missing)} in these runs; they have {', '.join(known)}")
    return found


def _run_names(runs: Sequence[Run]) -> list[str]:
    """What runs are called: the last part of `storage.root`; numbered where two are called the same."""
    names = [run.name or "run" for run in runs]
    count, seen = Counter(names), Counter[str]()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if count[name] == 1 else f"{name}-{seen[name]}")
    return unique


def _reference(systems: Sequence[System], wanted: str | None) -> System | None:
    decoded = [system for system in systems if system.score is not None]
    if wanted is not None:
        for system in systems:
            if system.name == wanted:
                if system.score is None:
                    raise StageError(f"{wanted} cannot be the reference: {system.note}")
                return system
        raise StageError(f"no system {wanted!r}; there are {', '.join(system.name for system in systems)}")
    usual = [system for system in decoded if system.student == "baseline"]
    without = [system for system in decoded if not system.has_targets]
    return next(iter([*usual, *without, *decoded]), None)


def _pairs(decoded: Sequence[System]) -> list[dict[str, Any]]:
    """Every system against every other one. Systems that recognized the same utterances share their draws."""
    draws: dict[tuple[tuple[str, str], ...], Bootstrap] = {}
    by_key = {system.name: {(r.cut_id, r.reference): r for r in system.recognized} for system in decoded}
    pairs = []
    for one, other in itertools.permutations(decoded, 2):
        common = tuple(sorted(by_key[one.name].keys() & by_key[other.name].keys()))
        pair: dict[str, Any] = {"system": one.name, "other": other.name, "utterances": len(common)}
        if common:
            if common not in draws:
                draws[common] = _bootstrap(by_key, common)
            difference = draws[common].compare(one.name, other.name)
            pair |= {**asdict(difference), "is_certain": difference.is_certain}
        pairs.append(pair)
    return pairs


def _bootstrap(by_key: Mapping[str, Mapping[Any, Any]], common: Sequence[Any]) -> "Bootstrap":
    from mvqkd.workers.recognize.bootstrap import Bootstrap

    have = {
        name: [found[key] for key in common] for name, found in by_key.items() if set(common) <= found.keys()
    }
    results = next(iter(have.values()))
    return Bootstrap(
        {name: [r.errors for r in each] for name, each in have.items()},
        [r.words for r in results],
        [r.speaker for r in results],
    )


def _differing(systems: Sequence[System]) -> list[dict[str, Any]]:
    keys = dict.fromkeys(key for system in systems for key in system.settings)
    rows = []
    for key in keys:
        values = {system.name: system.settings.get(key) for system in systems}
        if len({repr(value) for value in values.values()}) > 1:
            rows.append({"key": key, "values": values})
    return rows


def _tables(
    runs: Sequence[Run], reports: Sequence[Mapping[str, Any]], systems: Sequence[System]
) -> list[dict[str, Any]]:
    """Tables of targets, each once, with the systems that learned from them."""
    rows: dict[str, dict[str, Any]] = {}

    def use(location: Location, figures: Mapping[str, Any] | None, users: Sequence[str]) -> None:
        if location.url not in rows:
            figures = figures or _inspected(location)
            if figures is None:
                return  # no table yet; that is told of its students
            rows[location.url] = {"url": location.url, **_storage(figures), "systems": []}
        rows[location.url]["systems"] += [user for user in users if user not in rows[location.url]["systems"]]

    for run, report in zip(runs, reports, strict=True):
        mine = [s for s in systems if s.url.startswith(f"{run.root.url.rstrip('/')}/students/")]
        own = [system.name for system in mine if system.settings.get("distill.loss_scale")]
        use(run.table, report.get("extract", {}).get("table"), own)
        for more in run.more_tables():
            use(more.table, more.reports.whole().get("extract", {}).get("table"), [])
        for system in mine:
            for key, path in system.settings.items():
                if key.startswith("distill.targets.") and key.endswith(".table") and path is not None:
                    use(open_location(path, options=run.config.storage.options), None, [system.name])
    return list(rows.values())


def _inspected(location: Location) -> dict[str, Any] | None:
    """Figures of a table that no run here has extracted."""
    from mvqkd.storage.summary import inspect_table

    try:
        return inspect_table(location).to_dict()
    except (TableError, ContractError, ArtifactError):
        return None


def _storage(figures: Mapping[str, Any]) -> dict[str, Any]:
    contract = figures["contract"]
    keys = (
        "hours", "rows", "total_bytes", "bytes_per_hour", "bytes_per_frame", "bytes_per_index", "mean_rrl",
    )  # fmt: skip
    # `payload` and `dim` are in the contracts of tables of embeddings alone.
    of_contract = (
        "teacher_name", "layer", "num_codebooks", "codebook_size", "frame_rate_hz", "payload", "dim",
    )  # fmt: skip
    whole = figures.get("float32_bytes_per_hour")
    mine = figures.get("bytes_per_hour")
    return {
        **{key: figures.get(key) for key in keys},
        **{key: contract.get(key) for key in of_contract},
        "float32_bytes_per_hour": whole,
        "times_smaller": whole / mine if whole and mine else None,
    }


def _notes(decoded: Sequence[System]) -> list[str]:
    from mvqkd.workers.recognize.bootstrap import FEW_SPEAKERS

    notes = []
    parts = {frozenset((r.cut_id, r.reference) for r in system.recognized) for system in decoded}
    if len(parts) > 1:
        notes.append(
            "Not all systems recognized the same utterances. The error rate of each is of its own; pairs are compared "
            "on the utterances that both recognized, with the same transcript."
        )
    for system in decoded:
        score = system.score or {}
        if score.get("left_out"):
            notes.append(
                f"{system.name}: {score['left_out']} utterances of the test part are not in its error rate."
            )
    scores = [system.score for system in decoded if system.score is not None]
    if any(s["interval_over"] == "speakers" and s["interval_units"] < FEW_SPEAKERS for s in scores):
        notes.append(
            f"Intervals are over fewer than {FEW_SPEAKERS} speakers: they are rough, and more likely too narrow than "
            "too wide."
        )
    if any(s["interval_over"] == "utterances" for s in scores):
        notes.append(
            "Not every utterance names its speaker, or there is one speaker only. Intervals are over utterances, and "
            "too narrow where the errors of one speaker go together."
        )
    return notes
