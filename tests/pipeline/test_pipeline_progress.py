"""Progress lines where there is no terminal, bars where there is one."""

import io
from typing import Any

import pytest
from rich.console import Console

from mvqkd.pipeline.show import progress


def test_plain_lines_are_rare_and_end_with_the_total(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), force_terminal=False))
    with progress.bar("extract", total=8, unit="shards") as shown:
        for done in range(9):
            shown.update(done, hours=done / 2)
        shown.update(8, hours=4.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "extract: 2/8 shards in 0:12, 0:24 left  hours 1"
    assert lines[-1] == "extract: 8/8 shards in 0:36, 0:00 left  hours 4"
    assert len(lines) == 3


@pytest.mark.parametrize("total", [8.0, 1.0, float("inf")])
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, total: float) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=140))
    with progress.bar("train mvqkd", total=total, unit="steps") as shown:
        shown.update(0.5, transducer_loss=1.25)
        shown.update(1, total=2, transducer_loss=1.25)
    assert "train mvqkd" in screen.getvalue()
    assert "transducer loss 1.25" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(5.2, "0:05"), (65, "1:05"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
