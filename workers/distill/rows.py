"""Which rows of which index tables a training reads, and what for."""

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mvqkd.storage.rows import arrow_to_rows
from mvqkd.storage.table import IndexTable
from mvqkd.storage.threads import READING_THREADS, map_in_order
from mvqkd.workers.cuts import base_recording

Use = Literal["own", "codes", "valid"]
"""What a row is for: the student's own loss and what is distilled, that alone, or the held-out part."""

CHOOSING_COLUMNS = ("cut_id", "recording_id", "speaker", "duration", "speed", "text")


class RowKey(NamedTuple):
    """A row: the number of its table (0 is the run's own), its shard's name, its place in the shard."""

    table: int
    shard: str
    row: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The use of each row, by what stands in it alone: the same in every process and on every resume.

    Attributes:
        held_out: speakers, or recordings of rows without a speaker, that are not trained on.
        transcribed_share: share of the transcribed utterances whose transcripts count; the others have none.
        pretrain: no transcript counts.
        seed: of which utterances those are.
    """

    held_out: frozenset[str] = frozenset()
    transcribed_share: float = 1.0
    pretrain: bool = False
    seed: int = 1

    def __call__(self, row: Mapping[str, Any], *, own_table: bool = True) -> Use:
        """The use of a row with `CHOOSING_COLUMNS`; a row of another table has no transcript."""
        if group_of(row) in self.held_out:
            return "valid"
        transcribed = own_table and not self.pretrain and has_text(row["text"])
        if transcribed and self.transcribed_share < 1.0:
            transcribed = _draw(f"{self.seed}/transcribed/{row['cut_id']}") < self.transcribed_share
        return "own" if transcribed else "codes"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a training has to know of its own table before the first step.

    Attributes:
        texts: the transcripts that are trained on.
        seconds: of audio, by use.
        rows: by use.
        valid: the held-out rows that have a transcript.
        choice: of the rows.
    """

    texts: list[str]
    seconds: Mapping[str, float]
    rows: Mapping[str, int]
    valid: list[RowKey]
    choice: Choice


def has_text(text: str | None) -> bool:
    """Whether there is anything to be recognized."""
    return bool(text) and not str(text).isspace()


def group_of(row: Mapping[str, Any]) -> str:
    """What must not be on both sides of a split: the speaker, or the recording where there is none, at any speed."""
    if row["speaker"]:
        return f"speaker {row['speaker']}"
    return f"recording {base_recording(row['recording_id'], row['speed'])}"


def scan_table(
    table: IndexTable,
    *,
    valid_hours: float = 0.0,
    transcribed_hours: float | None = None,
    pretrain: bool = False,
    seed: int = 1,
) -> Scan:
    """Read the small columns of a table once, and choose what its rows are for.

    Args:
        valid_hours: hold out transcribed speech of about so much, whole speakers, at random.
        transcribed_hours: use the transcripts of about so much, utterances at random; None uses all.
        pretrain: use none.
        seed: of both choices.

    Raises:
        ValueError: no row has a transcript and `pretrain` is false, or no one is left to train on.
        TableError: a damaged file.
    """
    transcribed_s: defaultdict[str, float] = defaultdict(float)
    for _, row in _small_rows(table):
        if has_text(row["text"]):
            transcribed_s[group_of(row)] += row["duration"]
    total_s = sum(transcribed_s.values())
    if not total_s and not pretrain:
        raise ValueError(
            f"{table.location.url}: no row has a transcript, so no student can be trained on it; extract a corpus that "
            "has transcripts, or set distill.pretrain to train on the codes alone"
        )
    held_out = _hold_out(transcribed_s, valid_hours * 3600, seed)
    left_s = total_s - sum(transcribed_s[group] for group in held_out)
    if valid_hours and not left_s:
        raise ValueError(
            f"distill.valid_hours {valid_hours:g}: no speaker would be left to train on in "
            f"{table.location.url}; lower it"
        )
    share = 1.0 if transcribed_hours is None else min(1.0, transcribed_hours * 3600 / left_s)
    choice = Choice(held_out=held_out, transcribed_share=share, pretrain=pretrain, seed=seed)
    return _scanned(table, choice)


def _scanned(table: IndexTable, choice: Choice) -> Scan:
    texts: list[str] = []
    valid: list[RowKey] = []
    seconds: defaultdict[str, float] = defaultdict(float)
    rows: defaultdict[str, int] = defaultdict(int)
    for key, row in _small_rows(table):
        use = choice(row)
        seconds[use] += row["duration"]
        rows[use] += 1
        if use == "own":
            texts.append(row["text"])
        elif use == "valid" and has_text(row["text"]):
            valid.append(key)
    if not texts and not choice.pretrain:
        raise ValueError(f"{table.location.url}: distill.transcribed_hours leaves no transcript; raise it")
    return Scan(texts=texts, seconds=dict(seconds), rows=dict(rows), valid=valid, choice=choice)


def _small_rows(table: IndexTable) -> Iterator[tuple[RowKey, dict[str, Any]]]:
    def read(name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = table.read_shard(name, columns=CHOOSING_COLUMNS).to_pylist()
        return rows

    names = sorted(table.committed())
    # Several at a time: the table may be far away, and shards by the thousand.
    for name, rows in zip(names, map_in_order(read, names, threads=READING_THREADS), strict=True):
        for number, row in enumerate(rows):
            yield RowKey(0, name, number), row


def _hold_out(transcribed_s: Mapping[str, float], wanted_s: float, seed: int) -> frozenset[str]:
    held_out: set[str] = set()
    found_s = 0.0
    for group in sorted(transcribed_s, key=lambda group: (_draw(f"{seed}/valid/{group}"), group)):
        if found_s >= wanted_s:
            break
        held_out.add(group)
        found_s += transcribed_s[group]
    return frozenset(held_out)


def _draw(text: str) -> float:
    """A number in [0, 1) that follows from the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table that is read for training, and its shards, in order."""

    table: IndexTable
    shards: Sequence[str]


@dataclass(kw_only=True)
class Rows:
    """Whole rows of the tables of a training, the last shards of which stay in memory.

    Attributes:
        sources: by the number in a `RowKey`.
        columns: that are read.
        keep: shards that stay.
    """

    sources: Sequence[Source]
    columns: Sequence[str]
    keep: int
    _shards: OrderedDict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=OrderedDict)

    def __call__(self, key: RowKey) -> dict[str, Any]:
        """The row of a key."""
        place = key.table, key.shard
        if place not in self._shards:
            read = self.sources[key.table].table.read_shard(key.shard, columns=self.columns)
            self._shards[place] = list(arrow_to_rows(read))
            while len(self._shards) > self.keep:
                self._shards.popitem(last=False)
        self._shards.move_to_end(place)
        return self._shards[place][key.row]
