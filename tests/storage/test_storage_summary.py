import json
from dataclasses import replace

import numpy as np
import pytest

from mvqkd.storage.errors import TableError
from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.location import open_location
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import IndexTable


def test_summary_of_known_codes(tmp_path, contract, make_rows):
    place = open_location(str(tmp_path / "t"))
    table = IndexTable.create(place, replace(contract, num_codebooks=2, codebook_size=4))
    rows = make_rows(3, num_frames=8, num_codebooks=2)
    for row, rrl, speaker, duration in zip(
        rows, (0.1, 0.4, 0.2), ("x", None, "x"), (3.6, 7.2, 1.8), strict=True
    ):
        # Codebook 0 uses all four entries equally, codebook 1 only entry 2.
        row.update(rrl=rrl, speaker=speaker, duration=duration)
        row["codes"] = np.stack([np.arange(8) % 4, np.full(8, 2)], axis=1).astype(np.uint8)
    rows[2].update(codes=rows[2]["codes"][:4], num_frames=4)
    table.write_shard("a", rows[:2])
    table.write_shard("b", rows[2:])
    table.write_shard("c", [])
    record = Failure(shard="b", cut_id="z", stage="load", error="E", message="m", attempts=1)
    write_failures(place, "b", [record])

    summary = inspect_table(place, embedding_dim=10)

    assert (summary.shards, summary.rows, summary.frames, summary.indexes) == (3, 3, 20, 40)
    assert summary.hours == pytest.approx(12.6 / 3600) and summary.failures == 1
    assert summary.entropy_bits == (2.0, 0.0) and summary.perplexity == (4.0, 1.0)
    assert summary.unused_fraction == (0.0, 0.75)
    assert summary.worst_rrl == pytest.approx(0.4) and summary.worst_rrl_cut_id == rows[1]["cut_id"]
    assert summary.mean_rrl == pytest.approx(0.7 / 3)
    assert summary.frame_weighted_rrl == pytest.approx((0.1 * 8 + 0.4 * 8 + 0.2 * 4) / 20)
    assert summary.speakers == 1 and summary.hours_by_speaker == {"x": pytest.approx(5.4 / 3600)}
    on_disk = sum(path.stat().st_size for path in (tmp_path / "t").rglob("*") if path.is_file())
    assert summary.total_bytes == on_disk and summary.bytes_per_index == on_disk / 40
    assert summary.bytes_per_hour == pytest.approx(on_disk / summary.hours)
    assert summary.float32_bytes_per_hour == pytest.approx(20 * 10 * 4 / summary.hours)
    assert summary.float16_bytes_per_hour == pytest.approx(20 * 10 * 2 / summary.hours)
    assert json.loads(json.dumps(summary.to_dict()))["contract"]["layer"] == 6


def test_random_codes_use_the_codebooks_evenly(table, make_rows):
    table.write_shard("s", make_rows(130))
    summary = inspect_table(table.location)
    assert 1.0 < summary.codes_bytes_per_index < 1.005 < summary.bytes_per_index < 1.11
    assert min(summary.entropy_bits) > 7.95 and summary.unused_fraction == (0.0,) * 8
    assert summary.float32_bytes_per_hour is None


def test_an_empty_table_has_no_averages(table):
    summary = inspect_table(table.location, embedding_dim=512)
    assert summary.rows == 0 and summary.mean_rrl is summary.bytes_per_index is summary.worst_rrl is None
    assert summary.float16_bytes_per_hour is None and summary.entropy_bits == (0.0,) * 8
    json.dumps(summary.to_dict(), allow_nan=False)


def test_a_damaged_file_is_named(table, make_rows):
    table.write_shard("s", make_rows(1))
    table.location.replace("s.parquet", table.location.read_bytes("s.parquet")[:-20])
    with pytest.raises(TableError, match=r"s\.parquet"):
        inspect_table(table.location)
