"""Damaged table files: every reading of one ends in a refusal that names the file, or in the rows as written.

`run(cases, seed)` needs no pytest. A case is a shard, with or without a summary in its footer, with bits flipped,
bytes lost or overwritten, another file's footer, or written by another program; or the table's own `table.json`.
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ContractError, TableError
from mvqkd.storage.location import open_location
from mvqkd.storage.parquet import CONTRACT_KEY, to_parquet
from mvqkd.storage.rows import COLUMNS, IndexRow
from mvqkd.storage.shard_summary import ShardSummary
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import TABLE_FILE, IndexTable

SHARD = "s.parquet"
COLUMN_SETS = (["duration", "text"], ["cut_id", "codes"], ["rrl", "speaker", "num_frames"], list(COLUMNS))
CONTRACT = TableContract(
    teacher_fingerprint="a" * 64, teacher_name="t", layer=6, quantizer_id="b" * 64, num_codebooks=2, codebook_size=16,
    frame_rate_hz=50.0, frame_offset_s=0.0125, sample_rate_hz=16000,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Original:
    """A shard's bytes, its rows and its summary."""

    data: bytes
    rows: pa.Table
    summary: ShardSummary


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is done to which of the originals; `edit` takes and gives bytes."""

    of: int
    edit: Callable[[bytes], bytes]
    name: str

    def __repr__(self) -> str:
        return f"{self.name} of original {self.of}"


def run(cases: int, seed: int) -> None:
    """Check so many cases. Raises AssertionError, or what a reading raised, with the smallest case found."""
    with tempfile.TemporaryDirectory(prefix="mvqkd-fuzz-") as folder:
        originals = make_originals(folder)
        table = IndexTable.create(open_location(f"{folder}/table"), CONTRACT)
        intact = table.location.read_bytes(TABLE_FILE)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(
            shard_damage(originals),
            st.none() | st.none() | st.none() | damages_of(intact),
            st.sampled_from(COLUMN_SETS),
        )
        def check(damage: Damage, table_damage: Damage | None, columns: list[str]) -> None:
            original = originals[damage.of]
            write(table, SHARD, damage.edit(original.data))
            write(table, TABLE_FILE, intact if table_damage is None else table_damage.edit(intact))
            check_readings(table, original, columns, table_is_damaged=table_damage is not None)

        check()


def write(table: IndexTable, name: str, data: bytes) -> None:
    """Not through the table: thousands of writes that wait for the disk take minutes."""
    Path(table.location.full_path(name)).write_bytes(data)


def make_originals(folder: str) -> list[Original]:
    """Shards with and without the parts of a summary in the footer, each also as the version before wrote it."""
    table = IndexTable.create(open_location(f"{folder}/originals"), CONTRACT)
    originals = []
    for name, count, frames in (("small", 3, 4), ("large", 6, 800)):
        rng = np.random.default_rng(count)
        summary = table.write_shard(name, [make_row(i, frames, rng) for i in range(count)]).summary
        rows = table.read_shard(name)
        before = to_parquet(rows.replace_schema_metadata(None), {CONTRACT_KEY: CONTRACT.to_json()})
        for data in (table.location.read_bytes(f"{name}.parquet"), before):
            originals.append(Original(data=data, rows=rows, summary=summary))
    return originals


def make_row(index: int, num_frames: int, rng: np.random.Generator) -> IndexRow:
    """A row with all columns filled."""
    return IndexRow(
        cut_id=f"cut-{index}",
        recording_id=f"rec-{index}",
        channel=0,
        start=0.25 * index,
        duration=num_frames / 50 + 0.01,
        speed=1.0,
        num_samples=num_frames * 320,
        num_frames=num_frames,
        rrl=float(rng.uniform(0.1, 0.3)),
        speaker=None if index == 1 else f"speaker {index % 2}",
        text=f"TEXT {index}",
        codes=rng.integers(0, 16, (num_frames, 2), dtype=np.uint8),
        cut=f'{{"id":"cut-{index}"}}',
    )


def damages_of(data: bytes) -> st.SearchStrategy[Damage]:
    """Damages of any file: flipped bits, a piece lost or overwritten."""
    position = st.integers(0, len(data) - 1) | st.integers(1, min(3000, len(data))).map(
        lambda x: len(data) - x
    )
    flips = st.lists(st.tuples(position, st.integers(0, 7)), min_size=1, max_size=3)
    piece = st.tuples(position, st.integers(1, 64))
    return st.one_of(
        flips.map(lambda at: Damage(of=0, edit=lambda data: flip(data, at), name=f"bits {at} flipped")),
        position.map(lambda size: Damage(of=0, edit=lambda data: data[:size], name=f"cut off at {size}")),
        piece.map(
            lambda p: Damage(of=0, edit=lambda data: data[: p[0]] + data[sum(p) :], name=f"bytes lost {p}")
        ),
        st.tuples(position, st.binary(min_size=1, max_size=64)).map(
            lambda p: Damage(
                of=0,
                edit=lambda data: data[: p[0]] + p[1] + data[p[0] + len(p[1]) :],
                name=f"overwritten {p}",
            )
        ),
        st.binary(max_size=64).map(lambda new: Damage(of=0, edit=lambda _: new, name=f"{new!r} instead")),
    )


def shard_damage(originals: list[Original]) -> st.SearchStrategy[Damage]:
    """Damages of a shard: those of any file, the footer of another one, and other programs' files."""

    def of(number: int) -> st.SearchStrategy[Damage]:
        original = originals[number]
        other = st.integers(0, len(originals) - 1)
        return st.one_of(
            damages_of(original.data),
            damages_of(original.data),
            other.map(
                lambda n: Damage(
                    of=0, edit=lambda data: with_footer(data, originals[n].data), name=f"footer {n}"
                )
            ),
            foreign_files(original).map(
                lambda file: Damage(of=0, edit=lambda _: file, name=f"a foreign file of {len(file)} bytes")
            ),
        ).map(lambda damage: replace(damage, of=number))

    return st.integers(0, len(originals) - 1).flatmap(of)


def foreign_files(original: Original) -> st.SearchStrategy[bytes]:
    """The rows as another program may write them: other columns, types, encodings, pages, with our pairs or without."""

    def write_with(names: list[str], strings: bool, groups: int, kept: int, options: dict[str, Any]) -> bytes:
        arrow = original.rows.select(names)
        if strings:
            types = [pa.large_string() if field.type == pa.string() else field.type for field in arrow.schema]
            arrow = arrow.cast(pa.schema([f.with_type(t) for f, t in zip(arrow.schema, types, strict=True)]))
        metadata = pq.read_metadata(io.BytesIO(original.data)).metadata
        pairs = {key: value for key, value in metadata.items() if key != b"ARROW:schema"}
        sink = io.BytesIO()
        arrow = arrow.replace_schema_metadata(dict(list(pairs.items())[:kept]))
        pq.write_table(arrow, sink, row_group_size=groups, **options)
        return sink.getvalue()

    columns = st.just(list(COLUMNS)) | st.lists(st.sampled_from(COLUMNS), unique=True, min_size=1)
    options = st.fixed_dictionaries(
        {
            "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
            "use_dictionary": st.booleans(),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "store_schema": st.booleans(),
            "write_page_index": st.booleans(),
        }
    )
    return st.builds(write_with, columns, st.booleans(), st.integers(1, 6), st.integers(0, 2), options)


def flip(data: bytes, at: list[tuple[int, int]]) -> bytes:
    """The bytes with some bits flipped."""
    flipped = bytearray(data)
    for position, bit in at:
        flipped[position] ^= 1 << bit
    return bytes(flipped)


def with_footer(data: bytes, other: bytes) -> bytes:
    """The pages of one file under the footer of another."""
    return data[: footer_at(data)] + other[footer_at(other) :]


def footer_at(data: bytes) -> int:
    """Where the footer begins."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def check_readings(
    table: IndexTable, original: Original, columns: list[str], *, table_is_damaged: bool
) -> None:
    """Read the table in every way; a wrong answer is an AssertionError, any other exception comes through."""
    opened = refused(lambda: IndexTable.open(table.location), TABLE_FILE)
    if table_is_damaged:
        assert opened in (None, table), "another contract than was written"
    if opened is not None:
        expected = (original.rows.num_rows, original.summary.duration_s / 3600)
        assert_answer(lambda: attrgetter("rows", "hours")(inspect_table(table.location)), expected)
    assert_answer(lambda: table.read_shard("s"), original.rows)
    assert_answer(lambda: table.read_shard("s", columns=columns), original.rows.select(columns))
    assert_answer(
        lambda: replace(table.summary_of("s"), codes_bytes=0), replace(original.summary, codes_bytes=0)
    )
    assert_answer(table.verify, original.rows.num_rows)


def assert_answer(read: Callable[[], Any], expected: Any) -> None:
    """The reading refuses the file by name or gives the answer."""
    answer = refused(read, SHARD)
    assert answer is None or answer == expected, f"{answer} instead of {expected}"


def refused(read: Callable[[], Any], name: str) -> Any:
    """The answer, or None for a refusal that names the file."""
    try:
        return read()
    except (TableError, ContractError) as error:
        assert name in str(error), f"a refusal that does not name {name}: {error}"
        return None
