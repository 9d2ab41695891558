"""The checksum of a footer: no flipped bit gets through to a reader, and files without one are read as before."""

import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mvqkd.storage.errors import TableError
from mvqkd.storage.footer import MAGIC, FooterError, read_footer, sealed
from mvqkd.storage.location import open_location
from mvqkd.storage.parquet import open_parquet
from mvqkd.storage.table import IndexTable

SEAL_BYTES = 12


@pytest.fixture(params=["codes", "embeddings"])
def file(request: pytest.FixtureRequest, tmp_path: Path, make_rows: Callable, embedded: Callable) -> Path:
    contract = request.getfixturevalue("contract" if request.param == "codes" else "of_embeddings")
    table = IndexTable.create(open_location(str(tmp_path / "table")), contract)
    table.write_shard("a", make_rows(5) if request.param == "codes" else embedded(5))
    return tmp_path / "table" / "a.parquet"


def footer_of(data: bytes) -> int:
    """Where the footer begins."""
    return len(data) - len(read_footer(io.BytesIO(data)))


def without_seal(data: bytes) -> bytes:
    """As an earlier version wrote it."""
    start = footer_of(data)
    return data[: start - SEAL_BYTES] + data[start:]


def test_every_flipped_bit_is_refused(file):
    """Without the checksum some give other sizes without a word, and some crash the process that reads them."""
    data = bytearray(file.read_bytes())
    for position in range(footer_of(bytes(data)), len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(FooterError):
                read_footer(io.BytesIO(data))
            data[position] ^= 1 << bit
    assert read_footer(io.BytesIO(data)) == bytes(data[footer_of(bytes(data)) :])


def test_a_damaged_footer_is_named(file):
    data = bytearray(file.read_bytes())
    data[footer_of(bytes(data)) + 40] ^= 4
    for source in (bytes(data), io.BytesIO(data)):
        with pytest.raises(TableError, match=r"a\.parquet.*does not have the checksum.*run extract again"):
            open_parquet(source, where="a.parquet")


def test_a_damaged_seal_is_refused_or_is_none(file):
    """What it guards is whole then; nothing else may come of it."""
    data = bytearray(file.read_bytes())
    start = footer_of(bytes(data))
    whole = read_footer(io.BytesIO(data))
    refused = 0
    for position in range(start - SEAL_BYTES, start):
        data[position] ^= 1
        try:
            assert read_footer(io.BytesIO(data)) == whole
        except FooterError:
            refused += 1
        data[position] ^= 1
    assert refused == 4  # the bytes of the checksum itself


def test_files_without_a_checksum_are_read(file):
    """Those of earlier versions, and those that another program wrote again."""
    table = IndexTable.open(open_location(str(file.parent)))
    rows, summary = table.read_shard("a"), table.summary_of("a")
    file.write_bytes(without_seal(file.read_bytes()))
    assert table.read_shard("a").equals(rows) and table.summary_of("a") == summary


def test_a_name_that_is_the_mark_is_not_taken_for_it():
    sink = io.BytesIO()
    pq.write_table(pa.table({"mvqkdcrc": ["mvqkdcrc" + "1234" * 5]}), sink)
    plain = sink.getvalue()
    assert plain.rfind(b"mvqkdcrc") > plain.find(b"mvqkdcrc") > 0
    for data in (plain, sealed(plain)):
        assert pq.read_metadata(pa.BufferReader(read_footer(io.BytesIO(data)))).num_rows == 1


def test_a_longer_footer_than_is_fetched_at_first():
    sink = io.BytesIO()
    pq.write_table(pa.table({f"column_{index}": [index] for index in range(400)}), sink)
    data = bytearray(sealed(sink.getvalue()))
    whole = read_footer(io.BytesIO(data))
    assert len(whole) > 16 * 1024 and whole.endswith(MAGIC)
    data[-len(whole)] ^= 1  # the first byte, which only the second read has
    with pytest.raises(FooterError, match="checksum"):
        read_footer(io.BytesIO(data))


def test_other_tools_do_not_mind(file):
    assert pq.read_table(file).num_rows == 5
    assert pl.scan_parquet(file).select(pl.len()).collect().item() == 5
