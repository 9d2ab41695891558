"""Figures of cells: kept in one file, put together by bootstrap over speakers."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation.cells import CELLS

REPLICATES = 10_000


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
        own = _counts(folds)
        low, high = _interval(own)
        rates = [fold["wer"] for fold in folds.values()]
        figures: dict[str, Any] = {
            "title": CELLS[name].title,
            "folds": sorted(folds),
            "words": int(own[:, 1].sum()),
            "wer": float(own[:, 0].sum() / own[:, 1].sum()),
            "wer_low": low,
            "wer_high": high,
            "wer_of_folds": [min(rates), max(rates)],
            "seconds_per_epoch": float(
                np.mean([fold["seconds"] / fold["epochs"] for fold in folds.values()])
            ),
            "wait_share": float(np.mean([fold["wait_share"] for fold in folds.values()])),
        }
        if CELLS[name].distill.get("loss_scale") != 0.0:
            figures["target_bytes_per_hour"] = float(
                np.mean([fold["target_bytes_per_hour"] for fold in folds.values()])
            )
        other = counterpart(name)
        common = sorted(set(folds) & set(self.folds(other))) if other else []
        if common:
            figures |= {"against": other, **self._against(name, str(other), common)}
        return figures

    def _against(self, name: str, other: str, common: list[str]) -> dict[str, float]:
        """Relative reduction of the other's word errors, with its interval: the same speakers are drawn for both."""
        mine = _counts({fold: self.folds(name)[fold] for fold in common})
        theirs = _counts({fold: self.folds(other)[fold] for fold in common})
        draws = _draws(len(mine))
        reductions = 1 - mine[:, 0][draws].sum(axis=1) / np.maximum(1, theirs[:, 0][draws].sum(axis=1))
        low, high = np.percentile(reductions, [2.5, 97.5])
        whole = 1 - mine[:, 0].sum() / max(1, theirs[:, 0].sum())
        return {"reduction": float(whole), "reduction_low": float(low), "reduction_high": float(high)}


def counterpart(name: str) -> str | None:
    """The system without distillation that this one is compared with."""
    if name.endswith("none"):
        return None
    prefix = next((p for p in ("streaming-", "semi-10-", "semi-30-") if name.startswith(p)), "")
    return f"{prefix}none"


def markdown(results: Results) -> str:
    """The table of all systems that there are."""
    lines = [
        "| system | folds | WER (95 %) | lowest, highest fold | against none (95 %) | bytes an hour | s an epoch |",
        "|---|---|---|---|---|---|---|",
    ]
    for figures in results.summary().values():
        low, high = figures["wer_of_folds"]
        against = (
            ""
            if "against" not in figures
            else (
                f"{figures['reduction']:+.1%} ({figures['reduction_low']:+.1%} to {figures['reduction_high']:+.1%})"
            )
        )
        size = figures.get("target_bytes_per_hour")
        size_text = "" if size is None else f"{size:,.0f}"
        lines.append(
            f"| {figures['title']} | {len(figures['folds'])} | {figures['wer']:.2%} ({figures['wer_low']:.2%} to "
            f"{figures['wer_high']:.2%}) | {low:.2%}, {high:.2%} | {against} | {size_text} "
            f"| {figures['seconds_per_epoch']:.1f} |"
        )
    return "\n".join(lines)


def _counts(folds: dict[str, Any]) -> np.ndarray:
    """(speakers, 2): word errors and words, in the order of folds and names."""
    return np.array(
        [counts for fold in sorted(folds) for _, counts in sorted(folds[fold]["speakers"].items())],
        dtype=np.int64,
    )


def _interval(counts: np.ndarray) -> tuple[float, float]:
    draws = _draws(len(counts))
    rates = counts[:, 0][draws].sum(axis=1) / counts[:, 1][draws].sum(axis=1)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def _draws(speakers: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, speakers, (REPLICATES, speakers))
