"""Tables of embeddings: the same files, names and sums as tables of codes, and neither is taken for the other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import S3Server

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ContractError, TableError
from mvqkd.storage.location import open_location
from mvqkd.storage.parquet import CONTRACT_KEY, to_parquet
from mvqkd.storage.rows import EmbeddingsRow
from mvqkd.storage.shard_summary import SUMMARY_KEY, ShardSummary, SummaryTotal
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import IndexTable

DIM = 24  # of the fixtures' embeddings
Rows = list[EmbeddingsRow]


@pytest.fixture
def filled(tmp_path, of_embeddings: TableContract, embedded: Callable[..., Rows]) -> IndexTable:
    table = IndexTable.create(open_location(str(tmp_path / "embeddings")), of_embeddings)
    table.write_shard("a", embedded(40))
    table.write_shard("b", embedded(3, num_frames=1, seed=1))
    table.write_shard("c", [])
    return table


def test_rows_come_back_bit_for_bit(filled, embedded):
    rows = [*embedded(40), *embedded(3, num_frames=1, seed=1)]
    back = list(filled.iter_rows())
    assert len(back) == len(rows)
    for row, again in zip(rows, back, strict=True):
        assert set(again) == set(row)
        assert again["embeddings"].dtype == np.float16
        np.testing.assert_array_equal(again.pop("embeddings"), row["embeddings"])
        assert again == {key: value for key, value in row.items() if key != "embeddings"}
    assert filled.verify() == 43
    assert filled.dataset().count_rows() == 43


def test_other_tools_read_them(filled, embedded):
    """As DuckDB, Polars and PyArrow see them, without our code."""
    first = embedded(40)[0]["embeddings"]
    files = filled.location.full_path("*.parquet")
    kind, value, frames, dim = duckdb.sql(
        f"SELECT typeof(embeddings), embeddings[3][5], len(embeddings), len(embeddings[1]) FROM '{files}' "
        f"WHERE cut_id = '{embedded(1)[0]['cut_id']}' LIMIT 1"
    ).fetchall()[0]
    assert (kind, value, frames, dim) == ("FLOAT[][]", float(first[2, 4]), len(first), DIM)
    mean = duckdb.sql(
        f"SELECT avg(x) FROM (SELECT unnest(f) AS x FROM (SELECT unnest(embeddings) AS f FROM '{files}'))"
    ).fetchall()[0][0]
    all_of_them = np.concatenate([row["embeddings"].reshape(-1) for row in filled.iter_rows()])
    assert mean == pytest.approx(all_of_them.astype(np.float64).mean(), rel=1e-6)
    scanned = (
        pl.scan_parquet(filled.location.full_path("a.parquet"))
        .select(pl.col("embeddings").list.get(2).arr.get(4))
        .collect()
    )
    assert scanned.to_series()[0] == first[2, 4]
    name = filled.location.full_path("a.parquet")
    column = pyarrow.dataset.dataset(name).to_table(columns=["embeddings"])["embeddings"]
    assert column.type == pa.list_(
        pa.field("element", pa.list_(pa.field("element", pa.float16(), nullable=False), DIM), nullable=False)
    )
    assert column[0][2][4].as_py() == first[2, 4]


def test_contract_says_what_it_holds(contract, of_embeddings):
    values = json.loads(of_embeddings.to_json())
    assert values["payload"] == "embeddings" and values["dim"] == DIM
    assert not {"quantizer_id", "num_codebooks", "codebook_size", "search"} & set(values)
    assert TableContract.from_json(of_embeddings.to_json()) == of_embeddings
    assert replace(of_embeddings, dim=8).digest() != of_embeddings.digest()
    # Those of codes are what they were.
    assert not {"payload", "dim"} & set(json.loads(contract.to_json()))
    for changed in ({"num_codebooks": 8}, {"codebook_size": 256}, {"quantizer_id": "q"}, {"dim": 0}):
        (name,) = changed
        with pytest.raises(ContractError, match=f"{name} has the impossible value"):
            replace(of_embeddings, **changed)
    for text in (
        of_embeddings.to_json().replace('"payload":"embeddings",', ""),
        of_embeddings.to_json().replace('"embeddings"', '"features"'),
        contract.to_json().replace("{", '{"payload":"codes",'),
    ):
        with pytest.raises(ContractError, match="written by another version"):
            TableContract.from_json(text)


def test_neither_is_taken_for_the_other(filled, contract, make_rows, tmp_path):
    with pytest.raises(
        ContractError,
        match=r"embeddings: this table holds embeddings \(24 numbers a frame\), and codes are asked for; name a table "
        "that was extracted with target: codes",
    ):
        filled.read_shard("a", columns=["cut_id", "codes"])
    codes = IndexTable.create(open_location(str(tmp_path / "codes")), contract)
    codes.write_shard("a", make_rows(2))
    with pytest.raises(ContractError, match="this table holds codes, and embeddings are asked for"):
        next(codes.iter_rows(columns=["embeddings"]))
    with pytest.raises(ContractError, match=r"table\.json: this table holds embeddings"):
        IndexTable.create(filled.location, contract)
    filled.location.replace("d.parquet", codes.location.read_bytes("a.parquet"))
    with pytest.raises(
        ContractError, match=r"d\.parquet: this table holds codes, and embeddings are asked for"
    ):
        filled.read_shard("d")
    with pytest.raises(TableError, match="a row has the keys"):
        filled.write_shard("e", make_rows(1))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x: x.astype(np.float32), "embeddings must be a float16 array, got float32"),
        (lambda x: x[:, :-1], r"have shape \(30, 23\), num_frames and the contract say \(30, 24\)"),
        (lambda x: x[1:], r"have shape \(29, 24\)"),
        (lambda x: np.where(x == x.max(), np.float16(np.inf), x), "NaN, infinity or numbers beyond float16"),
        (lambda x: np.where(x == x.max(), np.float16(np.nan), x), "NaN, infinity or numbers beyond float16"),
    ],
)
def test_wrong_embeddings_are_not_written(filled, embedded, change, problem):
    row = embedded(1)[0]
    row["embeddings"] = change(row["embeddings"])
    with pytest.raises(TableError, match=problem):
        filled.write_shard("z", [row])
    assert "z" not in filled.committed()


def test_sums_are_in_the_footer_without_any_of_codes(filled, embedded):
    footer = json.loads(pq.read_metadata(filled.location.full_path("a.parquet")).metadata[SUMMARY_KEY])
    assert not {"counts", "rrl_sum", "worst_rrl"} & set(footer)
    assert {"rows", "frames", "duration_s", "speaker_s"} <= set(footer)
    a, b = filled.summary_of("a"), filled.summary_of("b")
    assert (a.rows, a.frames, b.rows, b.frames) == (40, 1200, 3, 3)
    assert 0.8 < a.codes_bytes / (a.frames * DIM * 2) < 1.01
    assert (a + b).frames == 1203 and ShardSummary.from_dict(a.to_dict()) == a
    assert set(a.speaker_s) == {row["speaker"] for row in embedded(40)} - {None}
    written = filled.write_shard("e", embedded(40))
    assert written.summary == filled.summary_of("e")
    with pytest.raises(ValueError, match="summaries of"):
        SummaryTotal((8, 256)).add(a)


def test_another_programs_file_is_summed_up_from_its_columns(filled):
    before = filled.summary_of("a")
    arrow = filled.read_shard("a").replace_schema_metadata(None)
    filled.location.replace("a.parquet", to_parquet(arrow, {CONTRACT_KEY: filled.contract.to_json()}))
    assert filled.summary_of("a") == before
    damaged = arrow.set_column(
        arrow.schema.get_field_index("num_frames"),
        arrow.schema.field("num_frames"),
        pa.array([7] * 40, pa.int32()),
    )
    filled.location.replace("a.parquet", to_parquet(damaged, {CONTRACT_KEY: filled.contract.to_json()}))
    with pytest.raises(TableError, match=r"a\.parquet: num_frames differ from the embeddings"):
        filled.verify()


def test_inspect_has_no_figures_of_codes(filled):
    summary = inspect_table(filled.location)
    assert (summary.rows, summary.frames, summary.indexes) == (43, 1203, 0)
    assert summary.bytes_per_index is summary.mean_rrl is summary.worst_rrl is None
    assert summary.entropy_bits == summary.unused_fraction == ()
    assert summary.bytes_per_frame == summary.total_bytes / 1203
    assert summary.float16_bytes_per_hour == pytest.approx(1203 * DIM * 2 / summary.hours)
    assert json.loads(json.dumps(summary.to_dict()))["contract"]["payload"] == "embeddings"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), lost=st.booleans())
def test_a_damaged_file_is_refused_or_read_as_it_was_written(filled, embedded, at, bit, lost):
    """A bit that is flipped, or bytes that are lost from there on; the rows are never other ones without a word."""
    path = Path(filled.location.full_path("c.parquet"))
    data = bytearray(Path(filled.location.full_path("a.parquet")).read_bytes())
    position = int(at * len(data))
    if lost:
        del data[position:]
    else:
        data[position] ^= 1 << bit
    path.write_bytes(data)
    try:
        rows = list(filled.iter_rows(shards=["c"]))
        summary = filled.summary_of("c")
    except (TableError, ContractError) as error:
        assert "c.parquet" in str(error)
        return
    assert summary == filled.summary_of("a")
    for row, written in zip(rows, embedded(40), strict=True):
        assert row.pop("embeddings").tobytes() == written.pop("embeddings").tobytes()
        assert row == written


@pytest.mark.integration
def test_on_s3_as_on_disk(s3_environment: S3Server, filled, of_embeddings, embedded):
    there = IndexTable.create(open_location(f"s3://{s3_environment.bucket}/embeddings"), of_embeddings)
    assert there.write_shard("a", embedded(40)).committed
    assert not there.write_shard("a", embedded(2)).committed
    assert there.location.read_bytes("a.parquet") == filled.location.read_bytes("a.parquet")
    assert there.summary_of("a") == filled.summary_of("a")
    columns = there.read_shard("a", columns=["cut_id", "embeddings"])
    assert columns.equals(filled.read_shard("a", columns=["cut_id", "embeddings"]))
