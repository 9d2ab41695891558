"""What `mvqkd sql` prints: a result as CSV, as JSON values, or as a table for people who type queries."""

import csv
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from mvqkd.pipeline.show.progress import say

MOST_SHOWN = 40
LONGEST_SHOWN = 60
Run = Callable[[str], tuple[list[str], Iterator[tuple[Any, ...]]]]


def write_csv(columns: list[str], rows: Iterable[tuple[Any, ...]], file: IO[str]) -> None:
    """Rows as they come, with a header; nothing of a statement that gives no columns."""
    if not columns:
        return
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if value is None else value for value in row])


def json_values(columns: list[str], rows: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """`columns` and `rows`, with text in the place of what JSON lacks."""
    return {"columns": columns, "rows": [[_plain(value) for value in row] for row in rows]}


def shell(run: Run, names: list[tuple[str, str]], source: IO[str]) -> None:
    """Answer queries until the source ends. On a terminal results are tables, and an error ends nothing.

    Args:
        run: answers one query; raises ValueError for one that is wrong.
        names: of the views, with what they are.
        source: of queries, each up to a `;` at the end of a line.
    """
    by_hand = source.isatty()
    if by_hand:
        for name, comment in names:
            say(f"  {name:<22}{comment}")
        say("queries end with ;  .views shows this list again, .quit ends")
        _use_readline()
    for query in _queries(source, by_hand):
        if query in (".views", ".quit"):
            if query == ".quit":
                return
            for name, comment in names:
                say(f"  {name:<22}{comment}")
            continue
        try:
            columns, rows = run(query)
            if by_hand:
                _print_table(columns, rows)
            else:
                write_csv(columns, rows, sys.stdout)
        except ValueError as error:
            if not by_hand:
                raise
            say(str(error))


def _queries(source: IO[str], by_hand: bool) -> Iterator[str]:
    lines: list[str] = []
    while True:
        try:
            line = input("sql> " if not lines else "...> ") if by_hand else next(source).rstrip("\n")
        except (EOFError, StopIteration):
            break
        except KeyboardInterrupt:
            if not by_hand:
                raise
            lines = []
            say("")
            continue
        if not lines and line.strip() in (".views", ".quit", ".exit"):
            yield line.strip().replace(".exit", ".quit")
            continue
        lines.append(line)
        if line.rstrip().endswith(";"):
            yield "\n".join(lines)
            lines = []
    if "".join(lines).strip():
        yield "\n".join(lines)


def _print_table(columns: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    if not columns:
        return
    table = Table(*columns)
    more = False
    for number, row in enumerate(rows):
        if number == MOST_SHOWN:
            more = True
            break
        table.add_row(*(_short(value) for value in row))
    Console().print(table)
    if more:
        say(f"the first {MOST_SHOWN} rows; --query gives all")


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    text = text.replace("[", r"\[")  # rich's markup
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return str(value)


def _use_readline() -> None:
    try:
        import readline  # noqa: F401  # `input` takes it up
    except ImportError:
        return
