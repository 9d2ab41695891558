import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mvqkd.storage.errors import ContractError, StaleCodesError, TableError
from mvqkd.storage.location import open_location
from mvqkd.storage.parquet import CONTRACT_KEY, to_parquet
from mvqkd.storage.rows import COLUMNS
from mvqkd.storage.table import IndexTable, check_row_matches


def file_of(table: IndexTable, name: str) -> Path:
    return Path(table.location.full_path(table.shard_path(name)))


def test_a_shard_read_while_it_is_replaced_is_one_of_the_two(table, make_rows):
    """Deleted and extracted again with other rows, many times, while it is read by column."""
    versions = [table.write_shard(f"v{n}", make_rows(20 + n, seed=n)).summary.rows for n in range(2)]
    contents = [table.location.read_bytes(f"v{n}.parquet") for n in range(2)]
    table.location.replace("s.parquet", contents[0])
    expected = [table.read_shard(f"v{n}", columns=["cut_id", "cut"]) for n in range(2)]
    done = threading.Event()

    def replace_on() -> None:
        number = 0
        while not done.is_set():
            number += 1
            table.location.replace("s.parquet", contents[number % 2])

    writer = threading.Thread(target=replace_on)
    writer.start()
    try:
        seen = {table.read_shard("s", columns=["cut_id", "cut"]).num_rows for _ in range(300)}
        for _ in range(300):
            found = table.read_shard("s", columns=["cut_id", "cut"])
            assert found.equals(expected[found.num_rows - 20])
    finally:
        done.set()
        writer.join()
    assert seen == set(versions), "both were met, so the test tests something"


def test_rows_come_back_as_written(table, make_rows):
    rows = make_rows(5, num_frames=7)
    rows[1]["speaker"] = rows[2]["text"] = None
    rows[3].update(codes=rows[3]["codes"][:0], num_frames=0)
    assert table.write_shard("one", iter(rows[:3])).committed and table.write_shard("two", rows[3:]).committed
    assert table.committed() == {"one", "two"} and table.verify() == 5
    back = list(table.iter_rows())
    assert [tuple(row) for row in back] == [(*(c for c in COLUMNS if c != "codes"), "codes")] * 5
    for row, expected in zip(back, rows, strict=True):
        assert row["codes"].dtype == np.uint8 and row["codes"].shape == (expected["num_frames"], 8)
        np.testing.assert_array_equal(row.pop("codes"), expected["codes"])
        assert row.pop("rrl") == pytest.approx(expected["rrl"])
        assert row == {name: expected[name] for name in row}
    other_way = [row["cut_id"] for row in table.iter_rows(columns=["cut_id"], shards=["two", "one"])]
    assert other_way == [row["cut_id"] for row in rows[3:] + rows[:3]]
    assert table.read_shard("one", columns=["rrl"]).column_names == ["rrl"]


def test_an_empty_shard_is_a_commit(table):
    assert table.write_shard("none", []).committed
    assert table.committed() == {"none"} and table.verify() == 0 and list(table.iter_rows()) == []


def test_a_committed_shard_is_left_alone(table, make_rows):
    assert table.write_shard("s", make_rows(2, seed=1)).committed
    before = file_of(table, "s").read_bytes()
    assert not table.write_shard("s", make_rows(2, seed=2)).committed
    assert file_of(table, "s").read_bytes() == before


def test_the_same_rows_give_the_same_bytes(table, make_rows):
    table.write_shard("a", make_rows(20))
    table.write_shard("b", make_rows(20))
    assert file_of(table, "a").read_bytes() == file_of(table, "b").read_bytes()


def test_size(table, make_rows):
    """130 rows of 134 frames of 8 random codes, with cuts of 600 bytes."""
    table.write_shard("s", make_rows(130))
    indexes = 130 * 134 * 8
    metadata = pq.ParquetFile(file_of(table, "s")).metadata
    codes = metadata.row_group(0).column(metadata.schema.names.index("element"))
    assert codes.path_in_schema == "codes.list.element.list.element"
    assert codes.total_compressed_size / indexes <= 1.005
    assert file_of(table, "s").stat().st_size / indexes <= 1.10
    assert metadata.num_row_groups == 1


def test_the_contract_stands_in_every_file(table, contract, make_rows):
    table.write_shard("s", make_rows(1))
    assert pq.read_metadata(file_of(table, "s")).metadata[CONTRACT_KEY].decode() == contract.to_json()
    assert pq.read_schema(file_of(table, "s")).field("codes").type.value_type.list_size == 8
    assert json.loads(table.location.read_bytes("table.json"))["contract_sha256"] == contract.digest()


@pytest.mark.parametrize("name", ["", "../s", "a/b", ".hidden", "_failures", "a b"])
def test_shard_names_are_file_names(table, name):
    with pytest.raises(ValueError, match="shard name"):
        table.write_shard(name, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rrl": float("nan")}, "rrl must be a finite number, got nan; leave this cut out"),
        ({"duration": "1"}, "duration must be a finite number"),
        ({"channel": -1}, "channel must be a whole number"),
        ({"num_samples": 1.5}, "num_samples must be a whole number"),
        ({"cut": None}, "cut must be text, got None"),
        ({"text": 3}, "text must be text or None"),
        ({"num_frames": 9}, r"codes have shape \(7, 8\), num_frames and the contract say \(9, 8\)"),
        ({"codes": np.zeros((7, 8), np.int64)}, "codes must be a uint8 array, got int64"),
        ({"codes": [[0] * 8] * 7}, "codes must be a uint8 array, got list"),
        ({"codes": np.zeros((7, 4), np.uint8)}, "codes have shape"),
        ({"extra": 1}, "needs exactly"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(table, make_rows, change, message):
    rows = make_rows(2, num_frames=7)
    rows[1].update(change)
    with pytest.raises(TableError, match=f"cut '{rows[1]['cut_id']}': .*{message}"):
        table.write_shard("s", rows)
    assert table.committed() == set()


def test_codes_outside_the_codebooks_and_double_cuts_are_refused(tmp_path, contract, make_rows):
    small = IndexTable.create(open_location(str(tmp_path / "t")), replace(contract, codebook_size=16))
    with pytest.raises(TableError, match="code 255 does not exist in codebooks of 16"):
        small.write_shard("s", make_rows(1))
    row = make_rows(1)[0]
    row["codes"] = row["codes"] % 16
    with pytest.raises(TableError, match="twice in one shard"):
        small.write_shard("s", [row, row])


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -100])
def test_a_truncated_file_is_named_with_the_remedy(table, make_rows, keep):
    table.write_shard("good", make_rows(3))
    table.write_shard("torn", make_rows(3, seed=1))
    path = file_of(table, "torn")
    path.write_bytes(path.read_bytes()[:keep])
    for read in (
        lambda: table.read_shard("torn"),
        lambda: list(table.iter_rows()),
        table.dataset,
        table.verify,
    ):
        with pytest.raises(
            TableError, match=r"torn\.parquet: a truncated or corrupt.*delete this object and run"
        ):
            read()
    path.unlink()
    assert table.verify() == 3 and table.committed() == {"good"}


def test_a_flipped_bit_in_the_codes_is_found(table, make_rows):
    table.write_shard("s", make_rows(3))
    path = file_of(table, "s")
    data = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(11)
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(TableError, match="corrupt"):
        table.read_shard("s")


def test_files_of_another_contract_or_origin_are_refused(table, contract, make_rows, tmp_path):
    table.write_shard("mine", make_rows(2))
    other = IndexTable.create(open_location(str(tmp_path / "other")), replace(contract, layer=5))
    other.write_shard("theirs", make_rows(2))
    shutil.copy(file_of(other, "theirs"), file_of(table, "theirs"))
    for read in (lambda: list(table.iter_rows()), table.dataset):
        with pytest.raises(ContractError, match=r"theirs\.parquet: made with layer = 5, but 6 is expected"):
            read()
    with pytest.raises(TableError, match=r"1 bad shard files\n.*theirs\.parquet"):
        table.verify()
    pq.write_table(pa.table({"x": [1]}), file_of(table, "theirs"))
    with pytest.raises(TableError, match="not of an index table"):
        table.read_shard("theirs")
    columns = to_parquet(pa.table({"x": [1]}), {CONTRACT_KEY: contract.to_json()})
    file_of(table, "theirs").write_bytes(columns)
    with pytest.raises(TableError, match="other columns"):
        table.read_shard("theirs")


def test_verify_compares_frames_and_codes(table, contract, make_rows):
    table.write_shard("s", make_rows(2))
    arrow = table.read_shard("s").replace_schema_metadata(None)
    index = arrow.schema.get_field_index("num_frames")
    wrong = arrow.set_column(index, arrow.schema.field(index), pa.array([134, 133], pa.int32()))
    table.location.replace("s.parquet", to_parquet(wrong, {CONTRACT_KEY: contract.to_json()}))
    with pytest.raises(TableError, match="num_frames differ"):
        table.verify()
    small = replace(contract, codebook_size=16)
    table.location.replace("s.parquet", to_parquet(arrow, {CONTRACT_KEY: small.to_json()}))
    with pytest.raises(TableError, match="outside the codebooks"):
        IndexTable(location=table.location, contract=small).verify()


def test_unknown_shards_and_columns_are_named(table, make_rows):
    with pytest.raises(TableError, match=r"nope\.parquet: no such shard"):
        table.read_shard("nope")
    table.write_shard("s", make_rows(1))
    with pytest.raises(TableError, match=r"no columns \['codez'\]; it has"):
        table.read_shard("s", columns=["codez"])


def test_dataset(table, make_rows):
    assert table.dataset().count_rows() == 0
    table.write_shard("a", make_rows(3))
    table.write_shard("b", make_rows(4, seed=1))
    table.location.replace("_failures/c.parquet", b"not ours")
    dataset = table.dataset()
    assert dataset.count_rows() == 7
    assert dataset.to_table(columns=["rrl"], filter=pc.field("rrl") > 0.2).num_rows < 7


def test_changed_audio_is_refused(table, make_rows):
    table.write_shard("s", make_rows(1))
    (row,) = table.iter_rows()
    now = {key: row[key] for key in ("recording_id", "channel", "start", "duration", "speed", "num_samples")}
    check_row_matches(row, **now)
    check_row_matches(row, **{**now, "duration": row["duration"] + 4e-6})
    changes = {"recording_id": "x", "channel": 1, "start": 0.01, "duration": row["duration"] - 1 / 16000,
               "speed": 1.1, "num_samples": row["num_samples"] + 1}  # fmt: skip
    for key, value in changes.items():
        with pytest.raises(
            StaleCodesError, match=rf"cut '{row['cut_id']}': {key} is .* now, but was .*extract"
        ):
            check_row_matches(row, **{**now, key: value})
