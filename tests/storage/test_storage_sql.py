"""The views of `mvqkd sql`, their figures against numpy's, on local tables and in S3."""

import sys
from typing import Any

import numpy as np
import pytest
from s3_server import S3Server

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ContractError
from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.location import open_location
from mvqkd.storage.rows import RRL_UNKNOWN, IndexRow
from mvqkd.storage.sql import SqlError, open_database, run_query, views
from mvqkd.storage.table import IndexTable


def ask(database: Any, query: str) -> list[tuple]:
    return list(run_query(database, query)[1])


def fill(table: IndexTable, rows: list[IndexRow], per_shard: int = 20) -> None:
    for number, begin in enumerate(range(0, len(rows), per_shard)):
        table.write_shard(f"shard-{number}", rows[begin : begin + per_shard])


def counts_of(rows: list[IndexRow], size: int = 256) -> np.ndarray:
    codes_FN = np.concatenate([row["codes"] for row in rows])
    return np.stack([np.bincount(codes_F, minlength=size) for codes_F in codes_FN.T])


def entropy(shares: np.ndarray) -> float:
    used = shares[shares > 0]
    return float(-(used * np.log2(used)).sum())


@pytest.fixture
def rows(make_rows) -> list[IndexRow]:
    """Codes of which some never occur, and speakers who use others than the rest."""
    rows = make_rows(60)
    for row in rows:
        row["codes"][row["codes"] % 7 == 3] = 0
        if row["speaker"] == "fakls":
            row["codes"] //= 2
    rows[5]["speaker"] = None
    return rows


def test_use_of_the_codes(table, rows):
    fill(table, rows)
    database, counts_NK = open_database(table.location), counts_of(rows)
    assert [
        times for *_, times in ask(database, "SELECT codebook, code, times FROM usage ORDER BY 1, 2")
    ] == [*counts_NK.reshape(-1)]
    dead = [(n, k) for n, k in zip(*np.nonzero(counts_NK == 0), strict=True)]
    assert ask(database, "FROM dead_codes") == dead and len(dead) > 100
    for codebook, used, gone, bits, largest in ask(database, "FROM codebooks"):
        shares_K = counts_NK[codebook] / counts_NK[codebook].sum()
        assert (used, gone) == ((shares_K > 0).sum(), (shares_K == 0).sum())
        assert bits == pytest.approx(entropy(shares_K)) and largest == pytest.approx(shares_K.max())
    frames = ask(database, f"SELECT frame, codebook, code FROM frames WHERE cut_id = '{rows[3]['cut_id']}'")
    assert {(t, n): code for t, n, code in frames} == {
        (t, n): code for (t, n), code in np.ndenumerate(rows[3]["codes"])
    }


def test_use_by_speaker(table, rows):
    fill(table, rows)
    database = open_database(table.location)
    whole_NK = counts_of(rows) / counts_of(rows).sum(axis=1, keepdims=True)
    found = ask(database, "FROM usage_by_speaker")
    speakers = {row["speaker"] for row in rows}
    assert len(found) == 8 * len(speakers)
    for speaker, codebook, frames, used, bits, distance in found:
        counts_K = counts_of([row for row in rows if row["speaker"] == speaker])[codebook]
        shares_K = counts_K / counts_K.sum()
        assert (frames, used) == (counts_K.sum(), (counts_K > 0).sum())
        assert bits == pytest.approx(entropy(shares_K))
        assert distance == pytest.approx(np.abs(shares_K - whole_NK[codebook]).sum() / 2)
    far = "SELECT speaker FROM usage_by_speaker WHERE frames > 1000 ORDER BY distance DESC LIMIT 8"
    farthest = ask(database, far)
    assert {name for (name,) in farthest} == {"fakls"}, "whose codes are others than the rest's"
    for speaker, cuts, hours, mean, worst in ask(database, "FROM speakers"):
        of = [row for row in rows if row["speaker"] == speaker]
        assert cuts == len(of) and hours == pytest.approx(sum(row["duration"] for row in of) / 3600)
        assert mean == pytest.approx(np.mean([row["rrl"] for row in of]), rel=1e-6)
        assert worst == pytest.approx(max(row["rrl"] for row in of), rel=1e-6)


def test_outliers_hours_and_bytes(table, rows):
    rows[7]["rrl"] = 0.9
    fill(table, rows)
    failure = Failure(
        shard="shard-1", cut_id="x", stage="load", error="E", message="no such file", attempts=1
    )
    write_failures(table.location, "shard-1", [failure])
    database = open_database(table.location)
    rrl = np.array([row["rrl"] for row in rows], np.float32).astype(float)
    z = (rrl - np.median(rrl)) / (1.4826 * np.median(np.abs(rrl - np.median(rrl))))
    found = ask(database, "SELECT cut_id, z, shard FROM outliers")
    assert [name for name, *_ in found] == [rows[i]["cut_id"] for i in np.argsort(-rrl)]
    assert [value for _, value, _ in found] == pytest.approx(np.sort(z)[::-1].tolist(), abs=1e-4)
    assert found[0][0] == rows[7]["cut_id"] and found[0][2] == "shard-0"
    assert len(ask(database, "FROM outliers WHERE z > 3.5")) == 1
    sizes = table.location.list()
    ((shards, cuts, frames, hours, size, per_hour, per_code, mean),) = ask(database, "FROM totals")
    assert (shards, cuts, frames) == (3, 60, 60 * 134)
    assert hours == pytest.approx(sum(row["duration"] for row in rows) / 3600)
    assert size == sum(n for name, n in sizes.items() if name.endswith(".parquet"))
    assert per_hour == pytest.approx(size / hours) and per_code == pytest.approx(size / (60 * 134 * 8))
    assert mean == pytest.approx(rrl.mean(), rel=1e-6)
    assert ask(database, "SELECT message FROM failures") == [("no such file",)]
    assert ("layer", "6") in ask(database, "FROM contract")


def test_drift_between_two_tables(tmp_path, table, rows, make_rows, contract):
    fill(table, rows)
    others = make_rows(60)[10:]
    for row in others[:20]:
        row["codes"] = row["codes"][:100].copy()
        row["num_frames"] = 100
        row["rrl"] += 0.1
    other = IndexTable.create(open_location(str(tmp_path / "other")), contract)
    fill(other, others)
    database = open_database(table.location, other.location)
    one_NK, two_NK = (c / c.sum(axis=1, keepdims=True) for c in (counts_of(rows), counts_of(others)))
    middle_NK = (one_NK + two_NK) / 2
    for codebook, distance, js_bits, here, there in ask(database, "FROM drift"):
        p_K, q_K, m_K = one_NK[codebook], two_NK[codebook], middle_NK[codebook]
        assert distance == pytest.approx(np.abs(p_K - q_K).sum() / 2)
        assert js_bits == pytest.approx(entropy(m_K) - (entropy(p_K) + entropy(q_K)) / 2)
        assert (here, there) == (((p_K > 0) & (q_K == 0)).sum(), ((p_K == 0) & (q_K > 0)).sum())
    ((codebook, code, change),) = ask(database, "SELECT codebook, code, change FROM drift_codes LIMIT 1")
    assert abs(change) == pytest.approx(np.abs(two_NK - one_NK).max())
    assert change == pytest.approx((two_NK - one_NK)[codebook, code])
    mine, theirs = ({row["cut_id"]: row for row in some} for some in (rows, others))
    found = ask(database, "SELECT cut_id, change, frames, other_frames, same_codes FROM drift_cuts")
    assert {name for name, *_ in found} == set(theirs)
    for name, change, frames, other_frames, same in found:
        a, b = mine[name]["codes"], theirs[name]["codes"]
        assert (frames, other_frames) == (len(a), len(b))
        assert same == pytest.approx((a[: len(b)] == b).mean())
        assert change == pytest.approx(theirs[name]["rrl"] - mine[name]["rrl"], abs=1e-6)
    assert ask(database, "SELECT count(*) FROM other.utterances") == [(50,)]


def test_codes_of_another_quantizer_are_not_compared(tmp_path, table, rows, contract):
    from dataclasses import replace

    fill(table, rows)
    other = IndexTable.create(
        open_location(str(tmp_path / "other")), replace(contract, quantizer_id="c" * 64)
    )
    fill(other, rows)
    database = open_database(table.location, other.location)
    assert ask(database, "SELECT count(*), count(same_codes) FROM drift_cuts") == [(60, 0)]
    with pytest.raises(SqlError, match=r"(?s)drift.*there are .*drift_cuts"):
        run_query(database, "FROM drift")


def test_a_loss_that_nobody_knows_is_null(table, make_rows):
    rows = make_rows(4)
    for row in rows:
        row["rrl"] = RRL_UNKNOWN
    fill(table, rows)
    database = open_database(table.location)
    assert ask(database, "SELECT count(*), count(rrl) FROM utterances") == [(4, 0)]
    assert ask(database, "FROM outliers") == []
    assert ask(database, "SELECT mean_rrl FROM totals") == [(None,)]


def test_a_table_without_shards(table):
    database = open_database(table.location)
    for name, comment in views(database):
        assert comment and list(run_query(database, f"FROM {name}")[1]) is not None
    assert ask(database, "SELECT count(*) FROM utterances") == [(0,)]
    assert ask(database, "SELECT count(*) FROM dead_codes") == [(8 * 256,)]


def test_what_is_refused(tmp_path, table, rows, contract: TableContract, monkeypatch):
    from dataclasses import replace

    fill(table, rows)
    database = open_database(table.location)
    with pytest.raises(SqlError, match="syntax error"):
        run_query(database, "SELEC 1")
    with pytest.raises(SqlError, match="there are codebooks, contract, dead_codes"):
        run_query(database, "FROM codes")
    with pytest.raises(SqlError, match="Could not convert"):
        ask(database, "SELECT cut_id::INTEGER FROM utterances")
    assert run_query(database, "CREATE TABLE mine AS SELECT 1")[0] is not None
    foreign = IndexTable.create(open_location(str(tmp_path / "foreign")), replace(contract, layer=1))
    foreign.write_shard("shard-9", rows[:1])
    table.location.write_once("shard-9.parquet", foreign.location.read_bytes("shard-9.parquet"))
    with pytest.raises(ContractError, match="layer"):
        open_database(table.location)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(SqlError, match=r"pip install 'mvqkd\[sql\]'"):
        open_database(table.location)


@pytest.mark.integration
def test_in_s3_with_the_environments_credentials(s3_environment: S3Server, tmp_path, contract, rows):
    places = [open_location(f"s3://{s3_environment.bucket}/sql/it's {n}") for n in range(2)]
    for place in places:
        fill(IndexTable.create(place, contract), rows)
    seen: list[tuple[int, int]] = []
    database = open_database(*places, note=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert ask(database, "SELECT count(*), sum(num_frames) FROM utterances") == [(60, 8040)]
    assert ask(database, "SELECT sum(distance), count(*) FROM drift") == [(0.0, 8)]
    assert ask(database, "SELECT count(*) FROM frames") == [(8040 * 8,)]
    told = str(ask(database, "FROM duckdb_settings()")) + str(ask(database, "FROM duckdb_secrets()"))
    assert s3_environment.secret not in told
