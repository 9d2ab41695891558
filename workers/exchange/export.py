"""Codes of tables joined onto cut manifests, by the audio that a cut is of: for icefall, or as a Lhotse Shar folder.

Three passes, none of which holds more than a shard of a table: the cuts are looked up, the codes that some cut takes
are put in order, then the cuts are written with the place of their codes. Everything is made aside; what is read by
others gets its name when all of it is there.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from lhotse.array import seconds_to_frames

from mvqkd.storage.contract import TableContract
from mvqkd.storage.table import IndexTable
from mvqkd.workers.corpus.files import CorpusError
from mvqkd.workers.exchange.code_index import CodeIndex, NoCodesError, Row
from mvqkd.workers.exchange.lines import (
    CutLine,
    NoAudioKeyError,
    UnusableLine,
    key_of,
    read_manifest_lines,
    read_own_lines,
)
from mvqkd.workers.exchange.names import ExportError

LEFT_OUT, REPORT = "left_out.jsonl", "export.json"
Kind = Literal["missing", "stale", "unusable"]
Note = Callable[[str, int, int | None], None]
"""Told of progress: what is done, how much of it, and of how much, if that is known."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A cut that has codes in every table: its line, and for each table the row of its codes."""

    line: CutLine
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Left:
    """A cut without codes, or a line that is none."""

    source: str
    line: int | None
    cut_id: str
    kind: Kind
    reason: str
    shard: str | None = None


@dataclass(kw_only=True)
class Tally:
    """What became of the cuts.

    Attributes:
        cuts: that were read. exported: those that have codes now. left_out: the others, by kind.
        hours: of the exported cuts.
        frames_not_read: frames of codes behind a cut's last one as Lhotse counts: it rounds the duration.
    """

    cuts: int = 0
    exported: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    hours: float = 0.0
    frames_not_read: int = 0


class Target(Protocol):
    """A format that is exported to."""

    def put_codes(self, index: CodeIndex, source: int) -> Iterator[None]:
        """Store the codes in use of a table and note their places in the index; one step for each shard."""

    def write(self, cut: Taken | Left) -> Left | None:
        """The next cut, in order; what is returned could not be written after all."""

    def finish(self, left_out: Path, report: dict[str, Any]) -> None:
        """Give everything its name."""

    def abandon(self) -> None:
        """Take away what was written; the export has failed."""


class Joined:
    """The cuts of manifests, or of the first table, with the rows of their codes.

    Args:
        index: of the tables, filled.
        cuts: manifests or Shar folders; none for the cuts of the first table.
        options: of the storage section, for `s3://`.
    """

    def __init__(self, index: CodeIndex, cuts: Sequence[str], options: Mapping[str, Any]) -> None:
        self._index, self._cuts, self._options = index, cuts, options

    def __iter__(self) -> Iterator[Taken | Left]:
        if not self._cuts:
            yield from map(self._join, read_own_lines(self._index.tables[0], iter(self._index.shards[0])))
        for url in self._cuts:
            yield from map(self._join, read_manifest_lines(url, self._options))

    def _join(self, item: CutLine | UnusableLine) -> Taken | Left:
        if isinstance(item, UnusableLine):
            refused = item.refused
            return Left(source=item.source, line=None, cut_id=refused.cut_id, kind="unusable",
                        reason=refused.reason)  # fmt: skip

        def left(kind: Kind, reason: str) -> Left:
            return Left(source=item.source, line=item.line, cut_id=item.cut_id, kind=kind, reason=reason,
                        shard=item.shard)  # fmt: skip

        try:
            key = key_of(item.data)
            sources = range(len(self._index.tables))
            rows = tuple(self._index.find(source, key, item.cut_id) for source in sources)
        except NoAudioKeyError as error:
            return left("unusable", str(error))
        except NoCodesError as error:
            return left("stale" if error.stale else "missing", str(error))
        if not all(row.frames for row in rows):
            return left("missing", "its codes have no frames: it is shorter than one of the teacher")
        return Taken(line=item, rows=rows)


def export(
    tables: Sequence[IndexTable],
    cuts: Sequence[str],
    target: Target,
    *,
    options: Mapping[str, Any],
    note: Note = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Export the codes of these cuts.

    Args:
        tables: a cut needs codes in all of them.
        cuts: manifests or Shar folders; none for the cuts of the first table.
        target: made for these tables.
        options: of the storage section, for `s3://`.
        note: called as the work goes on.

    Returns:
        Numbers of cuts, by what became of them.

    Raises:
        ExportError: no cut has codes.
        TableError, ContractError, CorpusError, StorageError: a table or a manifest cannot be read.
    """
    with CodeIndex(tables) as index, _or_abandon(target):
        for done, _ in enumerate(index.fill(), start=1):
            note("index", done, index.num_shards)
        joined, left_out = Joined(index, cuts, options), index.folder / LEFT_OUT
        with left_out.open("w", encoding="utf-8") as file:
            tally = _look_up(joined, index, file, note)
            if not tally.exported:
                raise ExportError(_nothing(tally, left_out))
            steps = (step for source in range(len(tables)) for step in target.put_codes(index, source))
            for done, _ in enumerate(steps, start=1):
                note("codes", done, index.num_shards)
            _write(joined, target, tally, file, note)
        report = _report(tables, tally)
        target.finish(left_out, report)
    return report


@contextmanager
def _or_abandon(target: Target) -> Iterator[None]:
    try:
        yield
    except BaseException:
        target.abandon()
        raise


def _look_up(joined: Joined, index: CodeIndex, left_out: IO[str], note: Note) -> Tally:
    tally = Tally()
    contracts = [table.contract for table in index.tables]
    for item in joined:
        tally.cuts += 1
        if isinstance(item, Left):
            _leave_out(item, tally, left_out)
        else:
            for row in item.rows:
                index.use(row)
            duration_s = float(item.line.data["duration"])
            tally.exported += 1
            tally.hours += duration_s / 3600
            tally.frames_not_read += sum(
                max(0, row.frames - frames_read(contract, duration_s))
                for row, contract in zip(item.rows, contracts, strict=True)
            )
        note("join", tally.cuts, None)
    left_out.flush()
    return tally


def _write(joined: Joined, target: Target, tally: Tally, left_out: IO[str], note: Note) -> None:
    for done, item in enumerate(joined, start=1):
        if isinstance(item, Taken) and any(row.file is None for row in item.rows):
            raise CorpusError(f"{item.line.source}: changed while it was read; export again")
        problem = target.write(item)
        if problem is not None:
            assert isinstance(item, Taken), "others were left out before"
            tally.exported -= 1
            tally.hours -= float(item.line.data["duration"]) / 3600
            _leave_out(problem, tally, left_out)
        note("write", done, tally.cuts)
    if not tally.exported:
        raise ExportError("no cut could be written; see the messages of the cuts in the manifest's order")


def frames_read(contract: TableContract, duration_s: float) -> int:
    """Frames that Lhotse takes for a cut of this length, where there are as many."""
    return seconds_to_frames(duration_s, frame_shift=1 / contract.frame_rate_hz)


def _leave_out(left: Left, tally: Tally, file: IO[str]) -> None:
    tally.left_out[left.kind] += 1
    values = {"cuts": left.source, "line": left.line, "cut_id": left.cut_id, "kind": left.kind,
              "reason": left.reason}  # fmt: skip
    file.write(json.dumps(values, ensure_ascii=False) + "\n")


def _nothing(tally: Tally, left_out: Path) -> str:
    if not tally.cuts:
        return "no cuts to export: the manifest, or the table, is empty"
    with left_out.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    return f"none of {tally.cuts} cuts has codes, the first: {first['cut_id']!r}: {first['reason']}"


def _report(tables: Sequence[IndexTable], tally: Tally) -> dict[str, Any]:
    return {
        "cuts": tally.cuts,
        "exported": tally.exported,
        "hours": tally.hours,
        "left_out": {kind: tally.left_out[kind] for kind in ("missing", "stale", "unusable")},
        "frames_not_read": tally.frames_not_read,
        "tables": [
            {"url": table.location.url, "contract": json.loads(table.contract.to_json())} for table in tables
        ],
    }
