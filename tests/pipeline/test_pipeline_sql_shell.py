"""What a person sees who types queries."""

import builtins
import io
from collections.abc import Iterator
from typing import Any

from mvqkd.pipeline.show.sql_shell import json_values, shell


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    if "bad" in query:
        raise ValueError("syntax error near bad")
    return ["n", "text"], iter([(number, "[red]x" * 40) for number in range(50)])


def test_a_session(monkeypatch, capsys):
    typed = iter(["SELECT", "1;", "bad;", ".views", ".quit", "never;"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    shell(run, [("totals", "hours and bytes")], Terminal())
    seen = capsys.readouterr()
    assert "[red]x[red]x" in seen.out and "the first 40 rows" in seen.err
    assert "syntax error near bad" in seen.err, "which ends nothing"
    assert seen.err.count("hours and bytes") == 2
    assert next(typed) == "never;"


def test_values_that_json_lacks():
    rows = [(float("nan"), b"x", [1, (2.5, None)], {"a": True})]
    assert json_values(["a"], rows)["rows"] == [[None, "b'x'", [1, [2.5, None]], {"a": True}]]
