import pyarrow.parquet as pq
import pytest

from mvqkd.storage.errors import TableError
from mvqkd.storage.failures import Failure, read_failures, write_failures
from mvqkd.storage.location import Location


def failure(shard: str, cut_id: str | None, **changes) -> Failure:
    values = {"stage": "load", "error": "UtteranceError", "message": "no such file: x.flac", "attempts": 1}
    return Failure(shard=shard, cut_id=cut_id, **{**values, **changes})


def test_failures_are_read_back_in_order(table):
    assert read_failures(table.location) == []
    cuts = [failure("b", "cut2"), failure("b", "cut1", stage="teacher", message="NaN")]
    write_failures(table.location, "b", cuts)
    write_failures(table.location, "a", [failure("a", None, attempts=3)])
    assert read_failures(table.location) == [failure("a", None, attempts=3), cuts[1], cuts[0]]
    assert table.committed() == set() and table.dataset().count_rows() == 0
    columns = pq.read_schema(f"{table.location.url}/_failures/b.parquet").names
    assert columns == ["shard", "cut_id", "stage", "error", "message", "attempts"]


def test_the_order_given_does_not_change_the_bytes(table):
    cuts = [failure("s", "cut1"), failure("s", "cut2")]
    write_failures(table.location, "s", cuts)
    before = table.location.read_bytes("_failures/s.parquet")
    write_failures(table.location, "s", cuts[::-1])
    assert table.location.read_bytes("_failures/s.parquet") == before


def test_a_later_success_replaces_the_failure_of_the_shard(table, make_rows):
    write_failures(table.location, "s", [failure("s", None, attempts=3)])
    write_failures(table.location, "s", [failure("s", "cut1")])
    table.write_shard("s", make_rows(1))
    assert read_failures(table.location) == [failure("s", "cut1")]
    write_failures(table.location, "s", [])
    assert read_failures(table.location) == []


def test_failures_of_another_shard_are_refused(table):
    with pytest.raises(ValueError, match=r"failure of shard 'a'"):
        write_failures(table.location, "b", [failure("a", None)])


def test_a_damaged_record_is_named(table):
    table.location.replace("_failures/s.parquet", b"PAR1 torn")
    with pytest.raises(TableError, match=r"_failures/s\.parquet"):
        read_failures(table.location)


def test_a_record_removed_during_the_reading_is_skipped(table, monkeypatch):
    write_failures(table.location, "s", [failure("s", None)])
    monkeypatch.setattr(Location, "list", lambda self, path="": {"gone.parquet": 1, "s.parquet": 1})
    assert read_failures(table.location) == [failure("s", None)]


def test_a_parquet_file_of_something_else_is_no_record(table, make_rows):
    table.write_shard("s", make_rows(1))
    table.location.replace("_failures/s.parquet", table.location.read_bytes("s.parquet"))
    with pytest.raises(TableError, match=r"_failures/s\.parquet: not a record of failures; delete it"):
        read_failures(table.location)


def test_many_records_come_in_order(table):
    names = [f"shard-{number:03d}" for number in range(200)]
    for name in reversed(names):
        write_failures(table.location, name, [failure(name, "x")])
    assert [record.shard for record in read_failures(table.location)] == names
