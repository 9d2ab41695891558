"""How far an error rate, or the difference of two, would move with another test part of the same kind.

The bootstrap of Bisani and Ney (*Bootstrap estimates for confidence intervals in ASR performance evaluation*, ICASSP
2004): the test part is drawn anew from itself, with replacement, many times, and every draw has its error rate. What is
drawn is speakers and not utterances wherever every utterance has one: the errors of one speaker go together, so that
intervals over utterances come out too narrow. Systems are compared in the same draws, so that what is hard for all of
them cancels.

kaldialign 0.12 (`bootstrap_wer_ci`) has the form over utterances only, and takes the interval as 1.96 standard
deviations. It knows no speakers, and neither an interval of a difference nor one of a relative reduction: these are
what a comparison is about, so this is 100 lines of numpy instead. A test compares both where both apply.

Shape suffixes: R draws, U units that are drawn (speakers or utterances), S systems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
DRAWS = 10_000
FEW_SPEAKERS = 10
"""With fewer, intervals over speakers are rough, mostly too narrow."""
_DRAWN_AT_ONCE = 2_000_000

Unit = Literal["speakers", "utterances"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """95 % of the draws lie from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A system against another one on the same utterances.

    Attributes:
        difference: its WER less the other's; negative where it makes fewer errors.
        difference_low, difference_high: 95 % interval; None with less than two speakers or utterances to draw.
        relative_reduction: share of the other's errors that it does without; None when the other makes none.
        relative_low, relative_high: 95 % interval; None as above, or without a bound.
        better: share of the draws in which its WER is lower; draws with the same WER count by half. None as above.
        over, units: what was drawn, and how many there are.
        utterances, words: that both were compared on.
    """

    difference: float
    difference_low: float | None
    difference_high: float | None
    relative_reduction: float | None
    relative_low: float | None
    relative_high: float | None
    better: float | None
    over: Unit
    units: int
    utterances: int
    words: int

    @property
    def is_certain(self) -> bool:
        """Whether the interval of the difference lies on one side of zero."""
        low, high = self.difference_low, self.difference_high
        return low is not None and high is not None and (low > 0 or high < 0)


class Bootstrap:
    """Error rates of systems over the same draws from one test part.

    Args:
        errors: of each system, word errors of every utterance (substitutions, deletions and insertions).
        words: of every reference.
        speakers: of every utterance. Where one is None, or there is only one, utterances are drawn.
        draws: R.
        seed: of the draws; the same one gives the same intervals.

    Raises:
        ValueError: the sequences are not of the same utterances, or there is none.
    """

    def __init__(
        self,
        errors: Mapping[str, Sequence[int]],
        words: Sequence[int],
        speakers: Sequence[str | None],
        *,
        draws: int = DRAWS,
        seed: int = 1,
    ) -> None:
        lengths = {len(words), len(speakers), *(len(each) for each in errors.values())}
        if len(lengths) != 1 or not words:
            raise ValueError(
                f"errors, words and speakers of {sorted(lengths)} utterances; give one of each for every utterance"
            )
        self.utterances, self.words = len(words), int(sum(words))
        unit_of = _units(speakers)
        self.over: Unit = "utterances" if unit_of is None else "speakers"
        units = np.arange(len(words)) if unit_of is None else unit_of
        self.units = int(units.max()) + 1
        columns = [np.bincount(units, weights=each) for each in (words, *errors.values())]
        sums_RS = _draw(np.stack(columns, axis=1), draws, seed)
        words_R = np.maximum(sums_RS[:, 0], 1.0)
        self._wer_R = {name: sums_RS[:, 1 + place] / words_R for place, name in enumerate(errors)}
        self._wer = {name: sum(each) / max(1, self.words) for name, each in errors.items()}

    def interval(self, system: str) -> Interval | None:
        """Of a system's WER; None with less than two speakers or utterances to draw."""
        return None if self.units < 2 else _interval(self._wer_R[system])

    def compare(self, system: str, other: str) -> Difference:
        """A system against another one."""
        wer_R, other_R = self._wer_R[system], self._wer_R[other]
        wer, other_wer = self._wer[system], self._wer[other]
        difference = relative = better = None
        if self.units >= 2:
            difference = _interval(wer_R - other_R)
            better = float((wer_R < other_R).mean() + 0.5 * (wer_R == other_R).mean())
            relative = _interval(_reduction(wer_R, other_R)) if other_wer else None
        return Difference(
            difference=wer - other_wer,
            difference_low=None if difference is None else difference.low,
            difference_high=None if difference is None else difference.high,
            relative_reduction=1 - wer / other_wer if other_wer else None,
            relative_low=None if relative is None else _bound(relative.low),
            relative_high=None if relative is None else _bound(relative.high),
            better=better,
            over=self.over,
            units=self.units,
            utterances=self.utterances,
            words=self.words,
        )


def _units(speakers: Sequence[str | None]) -> np.ndarray | None:
    """The number of every utterance's speaker, from 0; None where speakers cannot be drawn."""
    known = [speaker for speaker in speakers if speaker is not None]
    if len(known) < len(speakers) or len(set(known)) < 2:
        return None
    return np.unique(known, return_inverse=True)[1]


def _draw(values_US: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Sums over U units drawn with replacement, (R, S). Exact, so that no order of adding changes them."""
    rng = np.random.default_rng(seed)
    num_units = len(values_US)
    at_once = max(1, _DRAWN_AT_ONCE // num_units)
    sums = []
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        drawn = rng.integers(num_units, size=(rows, num_units)) + num_units * np.arange(rows)[:, None]
        times_RU = np.bincount(drawn.ravel(), minlength=rows * num_units).reshape(rows, num_units)
        sums.append(times_RU.astype(np.float64) @ values_US)
    return np.concatenate(sums)


def _reduction(wer_R: np.ndarray, other_R: np.ndarray) -> np.ndarray:
    """1 - wer / other; 0 where neither has errors, -inf where only the other has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(wer_R == other_R, 0.0, 1 - wer_R / other_R)


def _interval(values_R: np.ndarray) -> Interval:
    """Values that occur, not means of two: some may be infinite, and the interval of -x is that of x turned round."""
    ordered_R = np.sort(values_R)
    outside = int((1 - CONFIDENCE) / 2 * len(ordered_R))
    return Interval(low=float(ordered_R[outside]), high=float(ordered_R[-1 - outside]))


def _bound(value: float) -> float | None:
    return value if np.isfinite(value) else None
