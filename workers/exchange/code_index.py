"""Where the codes of an audio lie: the key columns of tables in a file on this disk, asked cut by cut.

Tables have more rows than memory holds. Their key columns (some 150 bytes a row) go into an SQLite file that is deleted
with the process; codes are not read for it.
"""

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvqkd.storage.rows import SPEED_TOLERANCE, TIME_TOLERANCE_S
from mvqkd.storage.table import IndexTable
from mvqkd.workers.cuts import base_recording
from mvqkd.workers.exchange.lines import AudioKey

_COLUMNS = ["cut_id", "recording_id", "channel", "start", "duration", "speed", "num_frames"]
_SCHEMA = """
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, source INTEGER, shard TEXT, position INTEGER, cut_id TEXT, recording TEXT,
    channel INTEGER, start REAL, duration REAL, speed REAL, frames INTEGER, used INTEGER DEFAULT 0,
    file INTEGER, key TEXT
);
"""
_INDEXES = (
    "CREATE INDEX by_audio ON rows (source, recording, channel, start)",
    "CREATE INDEX by_shard ON rows (source, shard, position)",
)
_PLACE_TAKEN = "INSERT INTO rows ({}) VALUES ({})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: its number in this index, its codes' frames, and the place that was given to them, if any."""

    number: int
    frames: int
    file: int | None
    key: str | None


class NoCodesError(LookupError):
    """A table has no codes of an audio.

    Attributes:
        stale: whether it has codes of the same recording and channel, at another time or speed.
    """

    def __init__(self, problem: str, *, stale: bool) -> None:
        super().__init__(problem)
        self.stale = stale


class CodeIndex:
    """The rows of some tables. Use it in a `with` block; tables are named by their position.

    Args:
        tables: to be asked.
    """

    def __init__(self, tables: Sequence[IndexTable]) -> None:
        self.tables = tuple(tables)
        self.shards = [sorted(table.committed()) for table in tables]
        self._folder = tempfile.TemporaryDirectory(prefix="mvqkd-exchange-")
        self.folder = Path(self._folder.name)
        """For other files of the same work; deleted with the index."""
        self._db = sqlite3.connect(self.folder / "rows.sqlite", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")

    def __enter__(self) -> "CodeIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    @property
    def num_shards(self) -> int:
        """Of all tables."""
        return sum(map(len, self.shards))

    def fill(self) -> Iterator[None]:
        """Read the key columns; one step for each shard.

        Raises:
            TableError, ContractError, StorageError: a shard is damaged or foreign, or the store broke off.
        """
        names = ("source", "shard", "position", "cut_id", "recording", "channel", "start", "duration",
                 "speed", "frames")  # fmt: skip
        insert = _PLACE_TAKEN.format(", ".join(names), ", ".join("?" * len(names)))
        for source, table in enumerate(self.tables):
            for shard in self.shards[source]:
                columns = table.read_shard(shard, columns=_COLUMNS).to_pydict()
                rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
                self._db.executemany(
                    insert,
                    (
                        (source, shard, i, cut, base_recording(recording, speed), channel, *times, speed, t)
                        for i, (cut, recording, channel, *times, speed, t) in enumerate(rows)
                    ),
                )
                yield
        for statement in _INDEXES:
            self._db.execute(statement)

    def find(self, source: int, key: AudioKey, cut_id: str) -> Row:
        """The row of a table with the codes of this audio; of several, that of the same cut id, else the first.

        Raises:
            NoCodesError: there is none.
        """
        found = self._db.execute(
            "SELECT id, frames, file, key FROM rows WHERE source = ? AND recording = ? AND channel = ? AND start "
            "BETWEEN ? AND ? AND abs(duration - ?) <= ? AND abs(speed - ?) <= ? ORDER BY cut_id <> ?, id LIMIT 1",
            (
                source,
                key.recording,
                key.channel,
                key.start - TIME_TOLERANCE_S,
                key.start + TIME_TOLERANCE_S,
                key.duration,
                TIME_TOLERANCE_S,
                key.speed,
                SPEED_TOLERANCE,
                cut_id,
            ),
        ).fetchone()
        if found is None:
            raise self._why_not(source, key)
        return Row(number=found[0], frames=found[1], file=found[2], key=found[3])

    def _why_not(self, source: int, key: AudioKey) -> NoCodesError:
        url = self.tables[source].location.url
        near = self._db.execute(
            "SELECT recording, channel, start, duration, speed FROM rows WHERE source = ? AND recording = ? "
            "ORDER BY channel <> ?, abs(speed - ?), abs(start - ?) + abs(duration - ?), id LIMIT 1",
            (source, key.recording, key.channel, key.speed, key.start, key.duration),
        ).fetchone()
        if near is None:
            return NoCodesError(f"{url} has no codes of recording {key.recording!r}", stale=False)
        there = AudioKey(*near)
        return NoCodesError(
            f"{url} has codes of recording {key.recording!r} from {there}, the cut is from {key}: codes are of one "
            "audio and cannot be cut or moved; extract this one too",
            stale=there.channel == key.channel,
        )

    def use(self, row: Row) -> None:
        """Note that a cut takes this row's codes."""
        self._db.execute("UPDATE rows SET used = 1 WHERE id = ? AND used = 0", (row.number,))

    def place(self, number: int, file: int, key: str) -> None:
        """Note where a row's codes were put."""
        self._db.execute("UPDATE rows SET file = ?, key = ? WHERE id = ?", (file, key, number))

    def used_codes(self, source: int) -> Iterator[tuple[str, list[tuple[int, str, Any]]]]:
        """The codes in use of a table, shard by shard: the shard's name, and number, cut id and codes of its rows.

        Codes are uint8 arrays (T, N).
        """
        table = self.tables[source]
        for shard in self.shards[source]:
            used = self._db.execute(
                "SELECT position, id, cut_id FROM rows WHERE source = ? AND shard = ? AND used = 1 ORDER BY position",
                (source, shard),
            ).fetchall()
            if not used:
                yield shard, []
                continue
            codes = [row["codes"] for row in table.iter_rows(columns=["codes"], shards=[shard])]
            yield shard, [(number, cut_id, codes[position]) for position, number, cut_id in used]
