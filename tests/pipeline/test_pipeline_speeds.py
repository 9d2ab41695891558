"""Runs whose training part is extracted at several speeds."""

from pathlib import Path
from typing import Any

import pytest
from tiny import make_run, objects, write_run_file
from typer.testing import CliRunner

from mvqkd.pipeline.cli import app
from mvqkd.pipeline.errors import ConfigError, StageError
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import need_plan, plan_stage
from mvqkd.storage.table import IndexTable
from mvqkd.workers.shard import read_shard_cuts

SPEEDS = "extract.speeds=[1.1, 0.9, 1]"


def test_from_plan_to_student(tree: dict[str, Any], tmp_path: Path) -> None:
    """A student is trained on all copies, none of which is refused; the test part is as it was said."""
    plain = plan_stage(make_run(tree, tmp_path))
    run = make_run(tree, tmp_path, SPEEDS, "distill.epochs=1", f"storage.root={tmp_path / 'speeds'}")
    planned = plan_stage(run)
    assert planned["speeds"] == [0.9, 1.0, 1.1] and plain["speeds"] == [1.0]
    assert planned["train_cuts"] == 3 * plain["train_cuts"] == 36
    assert planned["train_hours"] == pytest.approx(plain["train_hours"] * (1 / 0.9 + 1 + 1 / 1.1), rel=1e-4)
    assert (planned["test_cuts"], planned["test_hours"]) == (plain["test_cuts"], plain["test_hours"])
    fit_stage(run)
    summary = extract_stage(run)
    table = IndexTable.open(run.table)
    rows = list(table.iter_rows())
    assert summary["table"]["rows"] == len(rows) == 36 and summary["utterances_left_out"] == 0
    assert sorted({row["speed"] for row in rows}) == [0.9, 1.0, 1.1]
    test = [
        cut for shard in need_plan(run, "test").shards for cut in read_shard_cuts(run.plan("test"), shard)
    ]
    assert all(not cut.recording.transforms for cut in test)
    trained = distill_stage(run, "mvqkd")
    assert trained["left_out"] == 0 and trained["steps"] > 0
    before = objects(run.table)
    assert extract_stage(run)["shards_extracted"] == 0 and objects(run.table) == before


def test_other_speeds_are_another_plan(tree: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tree, tmp_path)
    fit_stage(run)
    extract_stage(run)
    more = make_run(tree, tmp_path, SPEEDS)
    with pytest.raises(StageError, match="shards are not of this plan"):
        extract_stage(more)
    done = CliRunner().invoke(
        app, ["plan", str(write_run_file(tree, tmp_path)), "--set", SPEEDS], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0 and "0.9, 1, 1.1; each copy is an utterance" in done.output


@pytest.mark.parametrize(
    ("speeds", "problem"),
    [
        ("[]", "extract.speeds"),
        ("[0.9, 0.9]", "names a speed twice"),
        ("[0.1]", "greater than or equal to 0.5"),
        ("[fast]", "extract.speeds"),
        ("['0.9']", "extract.speeds"),
        ("[.nan]", "extract.speeds"),
        ("fast", "extract.speeds"),
    ],
)
def test_what_is_no_speed(tree: dict[str, Any], tmp_path: Path, speeds: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_run(tree, tmp_path, f"extract.speeds={speeds}")


def test_one_speed_may_stand_alone(tree: dict[str, Any], tmp_path: Path) -> None:
    assert make_run(tree, tmp_path, "extract.speeds=[0.9]").config.extract.speeds == (0.9,)
    assert make_run(tree, tmp_path).config.extract.speeds == (1.0,)
