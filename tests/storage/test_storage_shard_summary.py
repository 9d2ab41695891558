"""Summaries of shards: in footers, added up, and the same figures as the rows themselves give."""

import json
import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mvqkd.storage import local_store
from mvqkd.storage.errors import TableError
from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.footer import TAIL_BYTES
from mvqkd.storage.location import open_location
from mvqkd.storage.parquet import CONTRACT_KEY, to_parquet
from mvqkd.storage.shard_summary import SUMMARY_KEY, ShardSummary, SummaryTotal
from mvqkd.storage.summary import inspect_table, object_sizes, summarize
from mvqkd.storage.table import IndexTable


@pytest.fixture
def filled(table, make_rows):
    """Shards large enough for all parts of their summary, one too small for them, an empty one, equal worst rows."""
    for number, name in enumerate(("a", "b")):
        rows = make_rows(250, seed=number)
        rows[7]["rrl"] = rows[9]["rrl"] = 0.75
        rows[3]["speaker"] = None
        table.write_shard(name, rows)
    table.write_shard("c", make_rows(2, seed=5))
    table.write_shard("d", [])
    failures = [
        Failure(shard="c", cut_id=f"z{i}", stage="load", error="E", message="m", attempts=1) for i in range(3)
    ]
    write_failures(table.location, "c", failures)
    return table


def as_before(table: IndexTable, name: str) -> None:
    """Rewrite a shard as the version before summaries did: the same pages, the contract alone in its footer."""
    arrow = table.read_shard(name).replace_schema_metadata(None)
    table.location.replace(f"{name}.parquet", to_parquet(arrow, {CONTRACT_KEY: table.contract.to_json()}))


def footer_keys(table: IndexTable, name: str) -> set[str]:
    metadata = pq.read_metadata(table.location.full_path(f"{name}.parquet")).metadata
    return set(json.loads(metadata[SUMMARY_KEY])) if SUMMARY_KEY in metadata else set()


def assert_figures_of_the_rows(table: IndexTable) -> None:
    summary = inspect_table(table.location, embedding_dim=10)
    rows = list(table.iter_rows())
    assert summary.rows == len(rows) and summary.shards == len(table.committed())
    assert summary.frames == sum(row["num_frames"] for row in rows) and summary.indexes == 8 * summary.frames
    assert summary.hours == pytest.approx(math.fsum(row["duration"] for row in rows) / 3600, rel=1e-12)
    assert summary.mean_rrl == pytest.approx(math.fsum(row["rrl"] for row in rows) / len(rows), rel=1e-12)
    weighted = math.fsum(row["rrl"] * row["num_frames"] for row in rows) / summary.frames
    assert summary.frame_weighted_rrl == pytest.approx(weighted, rel=1e-12)
    worst = max(rows, key=lambda row: row["rrl"])  # the first of equal ones
    assert (summary.worst_rrl, summary.worst_rrl_cut_id) == (worst["rrl"], worst["cut_id"])
    speakers = {row["speaker"] for row in rows} - {None}
    assert set(summary.hours_by_speaker) == speakers and summary.speakers == len(speakers)
    for speaker, hours in summary.hours_by_speaker.items():
        seconds = math.fsum(row["duration"] for row in rows if row["speaker"] == speaker)
        assert hours == pytest.approx(seconds / 3600, rel=1e-12)
    codes_FN = np.concatenate([row["codes"] for row in rows])
    for codebook in range(8):
        counts = np.array(list(Counter(codes_FN[:, codebook].tolist()).values()))
        share = counts / counts.sum()
        assert summary.entropy_bits[codebook] == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-12)
        assert summary.unused_fraction[codebook] == 1 - len(counts) / 256
    assert summary.failures == 3
    codes_bytes = sum(
        pq.read_metadata(table.location.full_path(f"{name}.parquet"))
        .row_group(0)
        .column(11)
        .total_compressed_size
        for name in table.committed()
    )
    assert summary.codes_bytes_per_index == codes_bytes / summary.indexes


def test_inspect_gives_the_figures_of_the_rows_for_old_and_new_files(filled):
    assert footer_keys(filled, "a") > {"counts", "speaker_s"} and "counts" not in footer_keys(filled, "c")
    assert_figures_of_the_rows(filled)
    before = inspect_table(filled.location).to_dict()
    for name in filled.committed():
        as_before(filled, name)
        assert footer_keys(filled, name) == set()
    assert_figures_of_the_rows(filled)
    after = inspect_table(filled.location).to_dict()
    sizes = {"total_bytes", "bytes_per_frame", "bytes_per_index", "bytes_per_hour"}
    assert {k: v for k, v in after.items() if k not in sizes} == {
        k: v for k, v in before.items() if k not in sizes
    }
    assert filled.verify() == 502


def test_write_shard_returns_what_stands_there(filled, make_rows):
    rows = make_rows(300, seed=9)
    written = filled.write_shard("e", rows)
    assert written.committed and written.summary == filled.summary_of("e") and written.summary.rows == 300
    again = filled.write_shard("e", rows[:5])
    assert not again.committed and again.summary == written.summary, (
        "the stored one's, not that of these rows"
    )
    as_before(filled, "e")
    data = filled.location.read_bytes("e.parquet")
    assert filled.write_shard("e", rows).summary == written.summary
    assert filled.location.read_bytes("e.parquet") == data
    other = filled.write_shard("f", rows)
    assert other.summary == written.summary
    assert pickle.loads(pickle.dumps(other)) == other  # noqa: S301 (our own bytes, as workers send them)


def test_the_table_is_summed_up_from_what_was_written(table, make_rows):
    total = SummaryTotal(table.contract)
    for number in range(3):
        total.add(table.write_shard(f"s{number}", make_rows(200, seed=number)).summary)
    found = summarize(table, total.total(), sizes=object_sizes(table), num_failures=0, embedding_dim=7)
    assert found == inspect_table(table.location, embedding_dim=7)


def test_summaries_add_up_and_travel_as_json(filled):
    a, b, c, empty = (filled.summary_of(name) for name in "abcd")
    assert empty == ShardSummary.empty(filled.contract) and a + empty == a == empty + a
    both = a + b
    assert both.rows == 500 and both.frames == a.frames + b.frames and both != a
    assert both.worst_cut_id == a.worst_cut_id != b.worst_cut_id, "the first of equal ones"
    np.testing.assert_array_equal((both + c).counts_NK, a.counts_NK + b.counts_NK + c.counts_NK)
    assert a.counts_NK.sum() == a.frames * 8
    for summary in (a, both, empty):
        text = json.dumps(summary.to_dict(), allow_nan=False)
        assert ShardSummary.from_dict(json.loads(text)) == summary and len(text) < 4000
    many = replace(a, counts_NK=a.counts_NK * 2**40)
    assert ShardSummary.from_dict(many.to_dict()) == many
    with pytest.raises(ValueError, match="codebooks"):
        _ = a + replace(a, counts_NK=a.counts_NK[:4])


@pytest.mark.parametrize(
    "change", [{"counts": ["x"]}, {"counts": [8, 256, "<f4", ""]}, {"more": 1}, {"rows": None}]
)
def test_what_is_no_summary_is_refused(filled, change):
    values = filled.summary_of("a").to_dict()
    values |= change
    if values["rows"] is None:
        del values["rows"]
    with pytest.raises(TableError, match=r"^here: not a summary of a shard"):
        ShardSummary.from_dict(values, where="here")


def test_a_summary_takes_little_of_the_file(table, make_rows):
    for count in (1, 130, 1000):
        rows = make_rows(count)
        for number, row in enumerate(rows):
            row["speaker"] = f"{number:0128x}"  # as long as client ids of a public corpus are, each another
        name = f"s{count}"
        table.write_shard(name, rows)
        size = table.location.size(f"{name}.parquet")
        as_before(table, name)
        grown = size - table.location.size(f"{name}.parquet")
        assert grown < 500 + 0.0101 * count * 134 * 8


def test_a_footer_longer_than_the_first_read(tmp_path, contract, make_rows):
    wide = IndexTable.create(open_location(str(tmp_path / "wide")), replace(contract, num_codebooks=64))
    written = wide.write_shard("s", make_rows(300, num_codebooks=64))
    assert footer_keys(wide, "s") > {"counts"}
    assert pq.read_metadata(wide.location.full_path("s.parquet")).serialized_size > TAIL_BYTES
    assert wide.summary_of("s") == written.summary and wide.verify() == 300


def test_a_file_that_another_program_wrote_again_is_counted_anew(filled, tmp_path):
    """With the pairs of the old footer: half of the rows are gone, the summary of all is still there."""
    path = filled.location.full_path("a.parquet")
    whole = pq.read_table(path)
    pairs = {k: v for k, v in pq.read_metadata(path).metadata.items() if k != b"ARROW:schema"}
    backwards = whole["duration"].take(np.arange(250)[::-1])
    for arrow in (whole.slice(0, 100), whole.set_column(4, whole.schema.field(4), backwards)):
        pq.write_table(arrow.replace_schema_metadata(pairs), path)
        assert SUMMARY_KEY in pq.read_metadata(path).metadata
        assert filled.summary_of("a").rows == arrow.num_rows
        assert_figures_of_the_rows(filled)


def test_a_flipped_bit_in_the_summary_is_found(filled):
    data = bytearray(filled.location.read_bytes("a.parquet"))
    at = data.index(b'"duration_s":') + 15
    assert chr(data[at]).isdigit()
    data[at] ^= 1
    data[data.rindex(b"mvqkdcrc")] ^= (
        1  # the checksum of the whole footer, which earlier versions did not write
    )
    filled.location.replace("a.parquet", bytes(data))
    for read in (lambda: filled.summary_of("a"), lambda: inspect_table(filled.location), filled.verify):
        with pytest.raises(
            TableError, match=r"a\.parquet: a truncated or corrupt .* summary in its footer: checksum"
        ):
            read()


def test_codes_outside_the_codebooks_are_no_figures(tmp_path, contract, make_rows):
    wide = IndexTable.create(open_location(str(tmp_path / "wide")), contract)
    wide.write_shard("s", make_rows(3))
    small = IndexTable.create(open_location(str(tmp_path / "small")), replace(contract, codebook_size=16))
    arrow = wide.read_shard("s").replace_schema_metadata(None)
    small.location.replace("s.parquet", to_parquet(arrow, {CONTRACT_KEY: small.contract.to_json()}))
    with pytest.raises(TableError, match=r"s\.parquet: codes outside the codebooks; delete this object"):
        inspect_table(small.location)


def test_columns_of_a_local_shard_are_all_that_is_read(table, make_rows, monkeypatch):
    read = []

    class Counting(local_store._LocalFile):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    table.write_shard("s", make_rows(1000))
    size = table.location.size("s.parquet")
    monkeypatch.setattr(local_store, "_LocalFile", Counting)
    for columns, share in ((["duration", "text"], 0.04), (["cut_id", "cut"], 0.08), (["rrl"], 0.03)):
        read.clear()
        assert table.read_shard("s", columns=columns).column_names == columns
        assert 0 < sum(read) < share * size
    read.clear()
    table.summary_of("s")
    assert 0 < sum(read) < 20_000
    read.clear()
    table.read_shard("s", columns=["codes"])
    assert sum(read) > 0.9 * size
