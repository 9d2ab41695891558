"""Figures of cells: kept in one file, put together by bootstrap over speakers."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.distillation.cells import CELLS
from mvqkd.workers.recognize.bootstrap import Bootstrap


class Results:
    """What was measured so far; each cell is written when it is there.

    Args:
        path: of the JSON file, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def has(self, name: str, fold: int) -> bool:
        """Whether a system was measured in a fold."""
        return str(fold) in self._cells.get(name, {})

    def add(self, name: str, fold: int, figures: dict[str, Any]) -> None:
        """Keep the figures of a system in a fold."""
        self._cells.setdefault(name, {})[str(fold)] = figures
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._cells, indent=1, sort_keys=True) + "\n")

    def folds(self, name: str) -> dict[str, Any]:
        """Figures of a system by fold."""
        return self._cells.get(name, {})

    def summary(self) -> dict[str, Any]:
        """By system: error rate with its interval, and against its counterpart on the folds that both have."""
        return {name: self._summary(name) for name in CELLS if self.folds(name)}

    def _summary(self, name: str) -> dict[str, Any]:
        folds = self.folds(name)
        own = self._bootstrap([name], sorted(folds))
        interval = own.interval(name)
        rates = [fold["wer"] for fold in folds.values()]
        errors = sum(errors for fold in folds.values() for errors, _ in fold["speakers"].values())
        figures: dict[str, Any] = {
            "title": CELLS[name].title,
            "folds": sorted(folds),
            "words": own.words,
            "wer": errors / own.words,
            "interval": None if interval is None else [interval.low, interval.high],
            "wer_of_folds": [min(rates), max(rates)],
            "cpu_s_per_epoch": _mean(
                fold["cpu_s"] and fold["cpu_s"] / fold["epochs"] for fold in folds.values()
            ),
            "wait_share": mean([fold["wait_share"] for fold in folds.values()]),
        }
        if CELLS[name].distill.get("loss_scale") != 0.0:
            figures["target_bytes_per_hour"] = mean(
                [fold["target_bytes_per_hour"] for fold in folds.values()]
            )
        other = counterpart(name)
        common = sorted(set(folds) & set(self.folds(other))) if other else []
        if other and common:
            pair = self._bootstrap([name, other], common).compare(name, other)
            figures |= {
                "against": other,
                "reduction": pair.relative_reduction,
                "reduction_interval": [pair.relative_low, pair.relative_high],
            }
        return figures

    def _bootstrap(self, names: list[str], folds: list[str]) -> Bootstrap:
        """Over the speakers of some folds, each of whom is in one; the same are drawn for all systems."""
        speakers = [
            (fold, speaker) for fold in folds for speaker in sorted(self.folds(names[0])[fold]["speakers"])
        ]

        def counts(name: str, which: int) -> list[int]:
            return [self.folds(name)[fold]["speakers"][speaker][which] for fold, speaker in speakers]

        return Bootstrap(
            {name: counts(name, 0) for name in names},
            counts(names[0], 1),
            [speaker for _, speaker in speakers],
        )


def counterpart(name: str) -> str | None:
    """The system without distillation that this one is compared with."""
    if name.endswith("none"):
        return None
    prefix = next((p for p in ("streaming-", "semi-10-", "semi-30-") if name.startswith(p)), "")
    return f"{prefix}none"


def markdown(results: Results) -> str:
    """The table of all systems that there are."""
    lines = [
        "| system | folds | WER (95 %) | lowest, highest fold | against none (95 %) | bytes an hour | CPU s an epoch |",
        "|---|---|---|---|---|---|---|",
    ]
    for figures in results.summary().values():
        low, high = figures["wer_of_folds"]
        interval = "" if figures["interval"] is None else f" ({_range(figures['interval'])})"
        against = ""
        if "against" in figures:
            against = f"{figures['reduction']:.1%} ({_range(figures['reduction_interval'])})"
        size = figures.get("target_bytes_per_hour")
        size_text = "" if size is None else f"{size:,.0f}"
        seconds = figures["cpu_s_per_epoch"]
        lines.append(
            f"| {figures['title']} | {len(figures['folds'])} | {figures['wer']:.2%}{interval} | {low:.2%}, {high:.2%} "
            f"| {against} | {size_text} | {'' if seconds is None else f'{seconds:.0f}'} |"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _range(bounds: list[float | None]) -> str:
    return " to ".join("?" if bound is None else f"{bound:.1%}" for bound in bounds)
