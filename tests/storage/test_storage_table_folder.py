"""A table as a folder: its table.json, links, files of others in it."""

import pickle
from dataclasses import replace

import pytest

from mvqkd.storage.errors import ContractError, StorageError, TableError
from mvqkd.storage.location import open_location
from mvqkd.storage.parquet import CONTRACT_KEY, to_parquet
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import IndexTable


def test_create_is_idempotent_and_refuses_another_contract(table, contract):
    before = table.location.read_bytes("table.json")
    assert IndexTable.create(table.location, contract) == table == IndexTable.open(table.location)
    assert table.location.read_bytes("table.json") == before
    with pytest.raises(ContractError, match=r"table\.json: made with quantizer_id"):
        IndexTable.create(table.location, replace(contract, quantizer_id="c" * 64))
    assert table.location.read_bytes("table.json") == before


def test_open_refuses_what_is_no_table(tmp_path):
    place = open_location(str(tmp_path))
    with pytest.raises(TableError, match="no index table here; check the url"):
        IndexTable.open(place)
    place.replace("table.json", b"{ torn")
    with pytest.raises(TableError, match=r"table\.json: not JSON"):
        IndexTable.open(place)
    place.replace("table.json", b"{}")
    with pytest.raises(ContractError, match="no table contract"):
        IndexTable.open(place)
    place.remove("table.json")
    (tmp_path / "table.json").mkdir()
    with pytest.raises(StorageError, match="a file stands where a folder"):
        IndexTable.open(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"layer": 6', '"layer": 5'), "the contract was changed after it was written"),
        (('"layer": 6', '"layer": "6"'), "layer must be of type int, not '6'"),
        (('"layer": 6', '"layer": 6, "layer": 7'), "the key 'layer' comes twice"),
        (("50.0", "NaN"), "NaN is not JSON"),
        (("50.0", "1" + 400 * "0"), "frame_rate_hz must be of type float"),
        (('"schema_version": 1', '"schema_version": 2'), "version 2, this program knows version 1; use the"),
        (('"schema_version": 1,', ""), "the table contract has the fields"),
        (("{", "[" * 100_000), "nested too deeply"),
    ],
)
def test_an_edited_table_file_is_refused_by_name(table, contract, change, message):
    text = table.location.read_bytes("table.json").decode()
    assert change[0] in text
    table.location.replace("table.json", text.replace(*change, 1).encode())
    for act in (lambda: IndexTable.open(table.location), lambda: IndexTable.create(table.location, contract)):
        with pytest.raises((TableError, ContractError), match=rf"table\.json: .*{message}"):
            act()


def test_a_table_of_a_later_version_is_refused(table, contract, make_rows):
    """Also when it is only one file of it, copied in."""
    table.write_shard("s", make_rows(1))
    arrow = table.read_shard("s").replace_schema_metadata(None)
    later = replace(contract, schema_version=2).to_json()
    table.location.replace("s.parquet", to_parquet(arrow, {CONTRACT_KEY: later}))
    with pytest.raises(ContractError, match=r"s\.parquet: the columns are of version 2"):
        table.read_shard("s")


def test_a_linked_table_is_the_table_and_a_file_is_none(table, make_rows, tmp_path):
    table.write_shard("s", make_rows(2))
    (tmp_path / "link").symlink_to(table.location.url)
    linked = IndexTable.open(open_location(str(tmp_path / "link")))
    assert linked.verify() == 2 and not linked.write_shard("s", make_rows(2)).committed
    (tmp_path / "file").write_bytes(b"")
    for act in (IndexTable.open, lambda place: IndexTable.create(place, table.contract)):
        with pytest.raises(StorageError, match=r"file/table\.json: a file stands where a folder is needed"):
            act(open_location(str(tmp_path / "file")))


def test_other_files_in_the_folder_are_named_or_passed_over(table, make_rows):
    table.write_shard("s", make_rows(2))
    for name in ("._s.parquet", ".hidden.parquet", "_metadata.parquet", "notes.txt"):
        table.location.replace(name, b"of another program")
    assert table.committed() == {"s"} and table.verify() == 2 and table.dataset().count_rows() == 2
    table.location.replace("copy of s.parquet", b"")
    for read in (table.verify, table.dataset, lambda: inspect_table(table.location)):
        with pytest.raises(TableError, match=r"table: shard name 'copy of s': .* is no shard, move it away"):
            read()


def test_a_table_travels_to_another_process(table):
    assert pickle.loads(pickle.dumps(table)) == table  # noqa: S301 (our own bytes)
