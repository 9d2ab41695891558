"""What a comparison says, in a few sentences; only what its figures carry."""

from collections.abc import Mapping, Sequence
from typing import Any

from mvqkd.pipeline.show.run_table import show_bytes, show_times
from mvqkd.pipeline.stages.compare_system import System


def summary(
    systems: Sequence[System],
    *,
    best: System | None,
    reference: System | None,
    pairs: Sequence[Mapping[str, Any]],
    tables: Sequence[Mapping[str, Any]],
) -> list[str]:
    """A headline, and what stands behind it.

    Args:
        best: with the lowest WER; None when none was decoded.
        reference: that the others are measured against.
        pairs, tables: as in `Comparison`.
    """
    if best is None or reference is None:
        return ["No system has been decoded yet", *_incomplete(systems)]
    by_name = {(pair["system"], pair["other"]): pair for pair in pairs}
    pair = by_name.get((best.name, reference.name))
    is_alone = sum(system.score is not None for system in systems) == 1
    sentences = [_headline(best, reference, pair, is_alone=is_alone), _rates(best, reference)]
    if pair is not None:
        sentences += _how_sure(pair)
    sentences += [*_storage(best, tables), *_alike(best, systems, by_name)]
    return [*sentences, *_incomplete(systems)]


def _headline(best: System, reference: System, pair: Mapping[str, Any] | None, *, is_alone: bool) -> str:
    if best is reference:
        others = "" if is_alone else "; no other system makes fewer errors"
        return f"{best.name} has a word error rate of {best.wer:.2%}{others}"
    reduction = None if pair is None else pair.get("relative_reduction")
    if pair is None or reduction is None:
        return f"{best.name} has the lowest word error rate, {best.wer:.2%}"
    doubt = "" if pair["is_certain"] else ", which may be chance"
    return f"{best.name} makes {reduction:.1%} fewer word errors than {reference.name}{doubt}"


def _rates(best: System, reference: System) -> str:
    said = f"The word error rate of {best.name} is {_rate(best)}"
    return f"{said}." if best is reference else f"{said}, that of {reference.name} {_rate(reference)}."


def _rate(system: System) -> str:
    score = system.score or {}
    if score["wer_low"] is None:
        return f"{score['wer']:.2%}"
    return f"{score['wer']:.2%} (95% interval {score['wer_low']:.2%} to {score['wer_high']:.2%})"


def _how_sure(pair: Mapping[str, Any]) -> list[str]:
    if pair.get("relative_low") is None or pair.get("relative_high") is None:
        return []
    often = "every draw" if pair["better"] == 1 else f"{pair['better']:.1%} of the draws"
    return [
        f"The reduction has a 95% interval of {pair['relative_low']:.1%} to {pair['relative_high']:.1%}, from draws of "
        f"{pair['units']} {pair['over']} of the test part; {pair['system']} is the better one in {often}."
    ]


def _alike(
    best: System, systems: Sequence[System], by_name: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[str]:
    alike = [
        system.name
        for system in systems
        if (pair := by_name.get((best.name, system.name))) is not None and not pair.get("is_certain", True)
    ]
    if not alike:
        return []
    return [f"The difference between {best.name} and {_and(alike)} may be chance."]


def _storage(best: System, tables: Sequence[Mapping[str, Any]]) -> list[str]:
    for table in tables:
        if best.name in table["systems"] and table["bytes_per_hour"]:
            size = f"The targets of {best.name} take {show_bytes(table['bytes_per_hour'])} per hour of audio"
            less = table["times_smaller"]
            return [f"{size}, {show_times(less)} times less than float32 embeddings." if less else f"{size}."]
    return []


def _incomplete(systems: Sequence[System]) -> list[str]:
    names = [system.name for system in systems if system.state != "decoded"]
    if not names:
        return []
    return [f"Not complete, and shown as far as known: {_and(names)}."]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
