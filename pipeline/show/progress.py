"""What a person sees while a stage works: a bar on a terminal, plain lines elsewhere. All on standard error."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 10.0

console = Console(stderr=True, highlight=False)


class Bar:
    """Progress of one stage; `update` says how far it is and what the figures are."""

    def __init__(self, title: str, total: float, unit: str, rich_bar: Progress | None) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._rich = rich_bar
        self._task = (
            rich_bar.add_task(title, total=_known(total), figures="", unit=unit) if rich_bar else None
        )
        self._began = time.monotonic()
        self._next_line = self._began + LINE_EVERY_S
        self._first: tuple[float, float] | None = None  # time and amount at the first update
        self._shown: float | None = None

    def update(self, done: float, *, total: float | None = None, **figures: Any) -> None:
        """Set how much is done, of `total` when that changed, and the figures shown behind the bar."""
        self._total = self._total if total is None else total
        now = time.monotonic()
        self._first = (now, done) if self._first is None else self._first
        text = "  ".join(f"{name.replace('_', ' ')} {_show(value)}" for name, value in figures.items())
        if self._rich is not None:
            assert self._task is not None
            self._rich.update(self._task, completed=done, total=_known(self._total), figures=text)
        elif done != self._shown and (now >= self._next_line or done >= self._total):
            self._next_line, self._shown = now + LINE_EVERY_S, done
            since, before = self._first
            gained = done - before
            left = (self._total - done) * (now - since) / gained if gained > 0 else math.nan
            remaining = f", {_duration(left)} left" if math.isfinite(left) else ""
            total_text = f"/{_show(self._total)}" if math.isfinite(self._total) else ""
            line = f"{self._title}: {_show(done)}{total_text} {self._unit} in {_duration(now - self._began)}{remaining}"
            print(f"{line}  {text}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def bar(title: str, *, total: float, unit: str) -> Iterator[Bar]:
    """A progress bar for the time of the block."""
    if not console.is_terminal:
        yield Bar(title, total, unit, None)
        return
    columns = (
        TextColumn("[bold]{task.description:<16}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn() if total >= 2 else TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as rich_bar:
        yield Bar(title, total, unit, rich_bar)


def say(text: str) -> None:
    """One line for the person, above any bar."""
    console.print(text, soft_wrap=True, markup=False)


def _known(total: float) -> float | None:
    """A bar of unknown length has no total."""
    return total if math.isfinite(total) else None


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
