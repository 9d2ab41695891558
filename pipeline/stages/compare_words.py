"""Where systems err: the worst utterances side by side, and speakers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mvqkd.pipeline.stages.compare_system import System

if TYPE_CHECKING:
    from mvqkd.workers.recognize.score import Recognized

_By = dict[str, "Recognized"]


def worst_utterances(systems: Sequence[System], count: int) -> tuple[list[dict[str, Any]], int]:
    """The utterances with the most errors of all systems together, those in which systems differ most, and of how
    many they are.

    An utterance without errors is in neither. Each has its `alignment` with every system that recognized it: lists of
    `[kind, said, heard]`.
    """
    found: dict[tuple[str, str], _By] = {}
    for system in systems:
        for result in system.recognized:
            found.setdefault((result.cut_id, result.reference), {})[system.name] = result
    wrong = [by for by in found.values() if _total(by)]
    most = sorted(wrong, key=_total, reverse=True)[:count]
    apart = sorted((by for by in wrong if _spread(by)), key=_spread, reverse=True)[:count]
    chosen = {id(by): by for by in (*most, *apart)}
    ordered = sorted(chosen.values(), key=lambda by: (-_total(by), -_spread(by)))
    return [_side_by_side(by) for by in ordered], len(found)


def _total(by: _By) -> int:
    return sum(result.errors for result in by.values())


def _spread(by: _By) -> int:
    errors = [result.errors for result in by.values()]
    return max(errors) - min(errors)


def _side_by_side(by: _By) -> dict[str, Any]:
    from mvqkd.workers.recognize.align import align

    first = next(iter(by.values()))
    return {
        "cut_id": first.cut_id,
        "speaker": first.speaker,
        "duration_s": first.duration_s or None,
        "reference": first.reference,
        "words": first.words,
        "errors": _total(by),
        "spread": _spread(by),
        "systems": [
            {
                "system": name,
                "hypothesis": result.hypothesis,
                "errors": result.errors,
                "alignment": [list(place) for place in align(result.reference, result.hypothesis)],
            }
            for name, result in by.items()
        ],
    }


def table_of_speakers(systems: Sequence[System]) -> list[dict[str, Any]]:
    """Every speaker's utterances, words and errors by system, the worst first; empty where none is named."""
    speakers: dict[str, dict[str, dict[str, int]]] = {}
    for system in systems:
        for result in system.recognized:
            if result.speaker is None:
                continue
            of = speakers.setdefault(result.speaker, {})
            sums = of.setdefault(system.name, {"utterances": 0, "words": 0, "errors": 0})
            sums["utterances"] += 1
            sums["words"] += result.words
            sums["errors"] += result.errors
    rows = [
        {
            "speaker": speaker,
            "utterances": max(sums["utterances"] for sums in of.values()),
            "words": max(sums["words"] for sums in of.values()),
            "wer": {name: sums["errors"] / max(1, sums["words"]) for name, sums in of.items()},
        }
        for speaker, of in speakers.items()
    ]
    return sorted(rows, key=lambda row: (-_mean_wer(row), row["speaker"]))


def _mean_wer(row: dict[str, Any]) -> float:
    wer: dict[str, float] = row["wer"]
    return sum(wer.values()) / len(wer)
