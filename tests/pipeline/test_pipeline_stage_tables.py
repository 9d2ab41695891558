"""Several tables out of one pass of the teacher."""

from pathlib import Path
from typing import Any

import pytest
from tiny import make_run, objects

from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage

LOW = {"low": {"layer": 1, "quantizer": {"num_codebooks": 3}, "search": "full"}}


def test_each_table_is_what_a_run_of_its_own_makes(tree: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tree | {"tables": LOW}, tmp_path)
    fitted = fit_stage(run)
    assert (fitted["num_codebooks"], fitted["tables"]["low"]["num_codebooks"]) == (2, 3)
    summary = extract_stage(run)
    assert (summary["shards_extracted"], summary["tables"]["low"]["shards_extracted"]) == (4, 4)
    (low,) = run.more_tables()
    assert low.table.url == run.root.join("tables", "low", "table").url
    assert low.reports.read("extract")["table"]["rows"] == summary["table"]["rows"]

    for name, table, overrides in (
        ("first", run.table, []),
        ("second", low.table, ["teacher.layer=1", "quantizer.num_codebooks=3", "extract.search=full"]),
    ):
        alone = make_run(tree, tmp_path, f"storage.root={tmp_path / name}", *overrides)
        fit_stage(alone)
        extract_stage(alone)
        assert objects(alone.table) == objects(table)


def test_a_table_that_is_added_later_leaves_the_first_one_alone(tree: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tree, tmp_path)
    fit_stage(run)
    extract_stage(run)
    before = {path: (Path(run.table.url) / path).stat().st_mtime_ns for path in objects(run.table)}
    more = make_run(tree | {"tables": LOW}, tmp_path)
    fit_stage(more)
    summary = extract_stage(more)
    assert (summary["shards_extracted"], summary["shards_found_done"]) == (0, 4)
    assert summary["tables"]["low"]["shards_extracted"] == 4
    assert before == {path: (Path(run.table.url) / path).stat().st_mtime_ns for path in objects(run.table)}
    again = extract_stage(more)
    assert (again["shards_extracted"], again["tables"]["low"]["shards_found_done"]) == (0, 4)
    # Without it in the run file it is as it was before.
    assert "tables" not in extract_stage(run)


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"low": {"quantizer": {"num_codebook": 3}}}, r"tables\.low\.quantizer.*num_codebook"),
        ({"low": {"quantizer": {"num_codebooks": 0}}}, r"tables\.low\.quantizer\.num_codebooks"),
        ({"../low": {"layer": 1}}, "letters, digits"),
        ({"low": {"layer": 0}}, r"tables\.low\.layer"),
    ],
)
def test_what_is_no_table(tree: dict[str, Any], tmp_path: Path, tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_run(tree | {"tables": tables}, tmp_path)
