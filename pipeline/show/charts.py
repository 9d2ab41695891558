"""Geometry of the charts of a page: where lines, marks and ticks stand, in the units of an SVG's view box."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

WIDTH, WIDTH_OF_THREE, HEIGHT = 560, 400, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 12, 34
LOG_FROM = 20.0
"""Values that differ by more than this factor stand on a logarithmic axis."""
COLORS = 8
_TICKS, _MOST_TICKS = 5, 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: `system` and its `style` (class names), `d` for a path, `points` as (x, y, step, value)."""

    system: str
    style: str
    d: str
    points: list[tuple[float, float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with lines over steps; ticks are (place, label)."""

    title: str
    unit: str
    width: int
    is_log: bool
    is_percent: bool
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = self._at(self.low), self._at(self.high)
        share = (self._at(value) - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 2)

    def _at(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def style_of(position: int, *, is_reference: bool) -> str:
    """Class names of a system's color and dashes; the reference is gray."""
    if is_reference:
        return "c0 d0"
    return f"c{1 + position % (COLORS - 1)} d{position // (COLORS - 1) % 3}"


def line_charts(systems: Sequence[Mapping[str, Any]], styles: Mapping[str, str]) -> list[Chart]:
    """Charts of what the learning curves hold: the student's own loss, every head's, WER on held-out speech.

    Keys of a point that are not known are left alone; a chart without two points of any system is left out.
    """
    heads = dict.fromkeys(name for system in systems for point in system["curve"] for name in heads_of(point))
    plots = [
        _Plot("Recognition loss", "nats per utterance", _curves(systems, styles, "transducer_loss")),
        *(
            _Plot(f"Loss of the head “{name}”", "per target", _curves(systems, styles, name, of_head=True))
            for name in heads
        ),
        _Plot("WER on held-out speech", "", _curves(systems, styles, "valid_wer"), is_percent=True),
    ]
    plots = [plot for plot in plots if plot.curves]
    width = WIDTH_OF_THREE if len(plots) % 3 == 0 else WIDTH
    return [_drawn(plot, width) for plot in plots]


def heads_of(point: Mapping[str, Any]) -> dict[str, float]:
    """Losses of heads by name; points of earlier versions have one, without a name."""
    heads = point.get("head_losses")
    if isinstance(heads, dict):
        return heads
    codebook = point.get("codebook_loss")
    return {} if codebook is None else {"codebook": codebook}


_Curve = tuple[str, str, list[tuple[float, float]]]
"""Label, style, (step, value)."""


class _Plot(NamedTuple):
    title: str
    unit: str
    curves: list[_Curve]
    is_percent: bool = False


def _curves(
    systems: Sequence[Mapping[str, Any]], styles: Mapping[str, str], key: str, *, of_head: bool = False
) -> list[_Curve]:
    curves: list[_Curve] = []
    for system in systems:
        name, style, points = system["name"], styles[system["name"]], system["curve"]
        own = _series([(p, (heads_of(p) if of_head else p).get(key)) for p in points])
        if any(
            value for _, value in own
        ):  # a training on codes alone has no loss of its own, which is written as 0
            curves.append((name, style, _changes(own) if key == "valid_wer" else own))
        held_out = _series([(p, _held_out(p, key)) for p in points])
        curves.append((f"{name}, held-out speech", f"{style} held", held_out))
    return [curve for curve in curves if len(curve[2]) > 1]


def _drawn(plot: _Plot, width: int) -> Chart:
    values = [value for *_, points in plot.curves for _, value in points]
    low, high = min(values), max(values)
    is_log = low > 0 and high > LOG_FROM * low and not plot.is_percent
    ticks = log_ticks(low, high) if is_log else ticks_of(0 if plot.is_percent else low, high)
    last = max(step for *_, points in plot.curves for step, _ in points)
    x = Scale(0, last, LEFT, width - RIGHT)
    y = Scale(min(low, ticks[0]), max(high, ticks[-1]), HEIGHT - BOTTOM, TOP, is_log)
    return Chart(
        title=plot.title,
        unit=plot.unit,
        width=width,
        is_log=is_log,
        is_percent=plot.is_percent,
        lines=[_line(name, style, points, x, y) for name, style, points in plot.curves],
        x_ticks=[(x(tick), f"{tick:,.0f}") for tick in ticks_of(0, last) if tick <= last],
        y_ticks=[(y(tick), f"{tick:.0%}" if plot.is_percent else f"{tick:g}") for tick in ticks],
    )


def _held_out(point: Mapping[str, Any], key: str) -> Any:
    losses = point.get("valid_losses")
    if not isinstance(losses, dict):
        return None
    return losses.get(key, losses.get(key.removesuffix("_loss")))


def _series(points: Sequence[tuple[Mapping[str, Any], Any]]) -> list[tuple[float, float]]:
    return [
        (float(point["step"]), float(value))
        for point, value in points
        if isinstance(value, int | float) and math.isfinite(value) and "step" in point
    ]


def _changes(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without those in a row that repeat a value: figures of an epoch stand in every point of the next one."""
    return [point for at, point in enumerate(points) if at == 0 or point[1] != points[at - 1][1]]


def _line(name: str, style: str, points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> Line:
    placed = [(x(step), y(value), step, value) for step, value in points]
    d = "M" + " L".join(f"{left:g} {top:g}" for left, top, *_ in placed)
    return Line(system=name, style=style, d=d, points=placed)


def ticks_of(low: float, high: float) -> list[float]:
    """Some round values, the first at most `low` and the last at least `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first = math.floor(low / step)
    count = math.ceil(high / step) - first
    return [round((first + number) * step, 12) for number in range(count + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around the values; powers alone where these would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [round(factor * 10.0**power, 12) for power in powers for factor in factors]
        first = max(tick for tick in ticks if tick <= low)
        last = min(tick for tick in ticks if tick >= high)
        ticks = [tick for tick in ticks if first <= tick <= last]
        if len(ticks) <= _MOST_TICKS:
            break
    return ticks


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """A WER and its interval on a common axis; `low` and `high` are None where there is no interval."""

    low: float | None
    at: float
    high: float | None


WHISKER_WIDTH = 220


def whiskers(scores: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Whisker], list[tuple[float, str]]]:
    """Where the intervals of systems stand, and the ticks of their axis, which begins at 0."""
    if not scores:
        return {}, []
    highest = max(
        score["wer"] if score["wer_high"] is None else score["wer_high"] for score in scores.values()
    )
    ticks = ticks_of(0, max(highest, 1e-3))
    scale = Scale(0, ticks[-1], 8, WHISKER_WIDTH - 14)
    places = {
        name: Whisker(
            low=None if score["wer_low"] is None else scale(score["wer_low"]),
            at=scale(score["wer"]),
            high=None if score["wer_high"] is None else scale(score["wer_high"]),
        )
        for name, score in scores.items()
    }
    digits = 0 if ticks[1] >= 0.01 - 1e-9 and round(ticks[1] * 100, 6) % 1 == 0 else 1
    return places, [(scale(tick), f"{tick:.{digits}%}") for tick in ticks[:: 2 if len(ticks) > 5 else 1]]
