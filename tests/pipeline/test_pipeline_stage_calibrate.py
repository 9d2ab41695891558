"""The calibrate stage in this process, and the plan's figures that follow from it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tiny import Done, copy_of, make_run, write_run_file
from typer.testing import CliRunner

from mvqkd.pipeline.cli import app
from mvqkd.pipeline.stages.calibrate import calibrate_stage
from mvqkd.pipeline.stages.plan import plan_stage

pytestmark = pytest.mark.integration


def invoke(arguments: list[str]) -> Result:
    """On a wide terminal, where no line of a table is folded."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def test_calibrate_then_plan(done: Done, tmp_path: Path, capsys: Any) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer"), tmp_path)
    before = plan_stage(run)
    assert before["hours_per_worker_hour"] is before["worker_hours"] is before["wall_hours"] is None
    found = calibrate_stage(run, seconds=0.3)
    assert run.reports.read("calibrate") == json.loads(json.dumps(found))
    assert found["workers"] == 2 and found["quality"]["frames"] > 100
    assert found["fitted"]["loudness"]["utterances"] > 0
    # Of a corpus of twelve utterances the sample is those of the fit and those held out.
    assert found["loudness"]["rms_dbfs"] == pytest.approx(found["fitted"]["loudness"]["rms_dbfs"], abs=1.0)
    after = plan_stage(run)
    rate = found["hours_per_worker_hour"]
    assert after["worker_hours"] == pytest.approx(after["train_hours"] / rate)
    assert after["wall_hours"] == pytest.approx(after["worker_hours"] / 2)
    assert (after["rate_from"], after["worker_memory_bytes"]) == (
        "mvqkd calibrate",
        found["peak_memory_bytes"],
    )
    # Of another layer nothing is known.
    other = plan_stage(make_run(copy_of(done, tmp_path / "other"), tmp_path, "teacher.layer=1"))
    assert other["worker_hours"] is None
    changed = make_run({**done[0], "storage": {"root": str(tmp_path / "run")}}, tmp_path, "teacher.layer=1")
    assert plan_stage(changed)["worker_hours"] is None
    assert "measured another teacher" in capsys.readouterr().err


def test_tables_for_people(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer")
    path = write_run_file(tree, tmp_path)
    result = invoke(["calibrate", str(path), "--seconds", "1"])
    assert result.exit_code == 0, result.output
    for words in (
        "hours of audio per worker-hour",
        "where it was fitted",
        "dBFS",
        "the cluster has room for 2",
    ):
        assert words in result.stdout
    result = invoke(["plan", str(path)])
    assert "(mvqkd calibrate)" in result.stdout and "with 2 workers" in result.stdout
    result = invoke(["plan", str(path), "--rate", "50", "--set", "extract.actors=10"])
    assert "at 50 hours of audio an hour (--rate)" in result.stdout and "with 10 workers" in result.stdout
    result = CliRunner().invoke(
        app, ["plan", str(path), "--set", "extract.hours_per_worker_hour=7", "--json"]
    )
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["worker_hours"] == pytest.approx(summary["train_hours"] / 7)


def test_without_a_quantizer(tree: dict[str, Any], tmp_path: Path) -> None:
    result = invoke(["calibrate", str(write_run_file(tree, tmp_path)), "--seconds", "1"])
    assert result.exit_code == 0, result.output
    assert "none yet; `mvqkd fit` makes it" in result.stdout
