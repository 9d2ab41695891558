"""How far an extraction is, told from its folder alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from tiny import Done, copy_of, make_run, on_s3

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.status_page import print_status
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.heartbeat import PROGRESS, Heartbeat
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.pipeline.stages.status import run_status
from mvqkd.storage.artifacts import read_json
from mvqkd.storage.errors import ArtifactError, StorageError
from mvqkd.storage.location import Location
from mvqkd.workers.plan import Shard

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(done: Done, tmp_path: Path) -> Run:
    """A run with a plan of some shards, none of them extracted."""
    return make_run(copy_of(done, tmp_path, "plan", "quantizer"), tmp_path)


@contextmanager
def beating(run: Run, *, every_s: float = 30.0) -> Iterator[tuple[Heartbeat, list[Shard]]]:
    plan = need_plan(run, "train")
    todo = list(plan.shards)
    with Heartbeat(
        root=run.root,
        table=run.table.url,
        plan=plan,
        todo=todo,
        shards_done=0,
        hours_done=0.0,
        every_s=every_s,
    ) as beat:
        yield beat, todo


def commit(run: Run, shard: Shard, *, ago_s: float, folder: str = "") -> None:
    """A file as it would stand there; the status looks at names and times alone."""
    path = Path(run.table.base_path) / folder / f"{shard.name('x')}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (time.time() - ago_s,) * 2)


def test_from_nothing_to_the_end(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = run_status(run)
    planned = before["shards"]["planned"]
    assert planned == len(need_plan(run, "train").shards) > 2
    assert (before["state"], before["shards"]["waiting"], before["driver"]) == ("not begun", planned, None)
    extract_stage(run)
    after = run_status(run)
    assert (after["state"], after["shards"]["done"], after["shards"]["waiting"]) == ("done", planned, 0)
    assert after["hours"] == {
        "planned": before["hours"]["planned"],
        "done": before["hours"]["planned"],
        "left": 0.0,
    }
    assert after["driver"]["state"] == "ended" and after["driver"]["process"] == os.getpid()
    print_status(after)
    assert f"shards: {planned} of {planned} done, 0 failed" in capsys.readouterr().out


def test_while_it_works(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with beating(run, every_s=0.01) as (beat, todo):
        commit(run, todo[0], ago_s=0)
        beat.through(todo[0].position, is_failed=False)
        commit(run, todo[1], ago_s=0, folder="_failures")
        beat.through(todo[1].position, is_failed=True)
        half = todo[2].hours / 2
        beat.take(
            [
                {"position": todo[2].position, "hours": half, "worker": "host/7"},
                {"position": todo[0].position, "hours": 1.0, "worker": "gone/8"},  # of a worker that died
            ]
        )
        deadline = time.monotonic() + 60
        while not read_json(run.root, PROGRESS)["in_hand"]:  # it beats by itself
            assert time.monotonic() < deadline
    now = time.time()
    beat.every_s = 30.0
    beat._write("working")
    status = run_status(run, now=now)
    assert status["state"] == "working"
    assert status["shards"] == {
        "planned": len(todo), "done": 1, "failed": 1, "in_hand": 1, "waiting": len(todo) - 3
    }  # fmt: skip
    assert status["workers"] == [
        {"worker": "host/7", "position": todo[2].position, "hours": half, "of_hours": todo[2].hours}
    ]
    assert status["hours"]["done"] == pytest.approx(todo[0].hours)
    assert status["rate_from"] == "driver" and status["hours_per_hour"] > 0
    assert status["seconds_left"] == pytest.approx(status["hours"]["left"] / status["hours_per_hour"] * 3600)
    assert status["failed_shards"] == [todo[1].name("x")]
    print_status(status)
    out = capsys.readouterr().out
    assert "extract: working" in out and "host/7: shard 2" in out and "left: " in out


def test_a_driver_that_was_killed_is_silent(run: Run) -> None:
    with beating(run) as (beat, todo):
        commit(run, todo[0], ago_s=400)
        beat.through(todo[0].position, is_failed=False)
        beat._write("working")
        killed = read_json(run.root, PROGRESS)
    stopped = run_status(run)
    assert (stopped["state"], stopped["driver"]["state"]) == ("stopped", "ended")
    run.root.replace(PROGRESS, json.dumps(killed).encode())
    assert run_status(run)["state"] == "working"
    later = run_status(run, now=time.time() + 100)
    assert later["state"] == "silent" and later["driver"]["age_s"] > 90
    assert later["seconds_left"] is None and later["workers"] == []
    assert later["last_commit_age_s"] == pytest.approx(500, abs=20)


def test_the_rate_of_the_commits_where_no_driver_is_heard(run: Run) -> None:
    shards = need_plan(run, "train").shards
    for number, ago_s in enumerate((900, 300, 240, 180)):
        commit(run, shards[number % len(shards)], ago_s=ago_s)
    status = run_status(run)
    mean = status["hours"]["planned"] / len(shards)
    assert (status["rate_from"], status["state"]) == ("commits", "stopped" if len(shards) > 4 else "done")
    within = min(3, len(shards))  # of the last ten minutes
    assert status["hours_per_hour"] == pytest.approx((within - 1) * mean / 120 * 3600, rel=0.01)


def test_a_place_that_cannot_be_written_does_not_end_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Location, path: str, data: bytes) -> None:
        raise StorageError(path, "no space left", "free some")

    monkeypatch.setattr(Location, "replace", full)
    with beating(run) as (beat, _):
        beat._write("working")
    assert capsys.readouterr().err.count("no space left") == 1


def test_what_is_not_there_or_damaged(done: Done, tmp_path: Path, run: Run) -> None:
    run.root.replace(PROGRESS, b'{"table": 1}')
    assert run_status(run)["driver"] is None, "of another table"
    run.root.replace(PROGRESS, f'{{"table": "{run.table.url}", "time": "noon"}}'.encode())
    with pytest.raises(ArtifactError, match=r"progress.json: not a sign of life"):
        run_status(run)
    nothing = make_run({**done[0], "storage": {"root": str(tmp_path / "nothing")}}, tmp_path)
    with pytest.raises(StageError, match=r"plan.json: no plan; `mvqkd plan` makes it"):
        run_status(nothing)


@pytest.mark.integration
def test_in_s3_as_on_a_disk(done: Done, tmp_path: Path, s3_environment: S3Server) -> None:
    tree = on_s3(done[0], s3_environment, tmp_path.name)
    run = make_run({**tree, "cluster": {"address": "none"}}, tmp_path)
    here = make_run(done[0], tmp_path)
    for path in (
        "plan/train/plan.json",
        *(f"plan/train/{shard.path}" for shard in need_plan(here, "train").shards),
    ):
        run.root.replace(path, here.root.read_bytes(path))
    shard = need_plan(here, "train").shards[0]
    run.table.replace(f"{shard.name('x')}.parquet", b"")
    run.table.replace(f"_failures/{shard.name('y')}.parquet", b"")
    status: dict[str, Any] = run_status(run)
    assert (status["shards"]["done"], status["shards"]["failed"]) == (1, 1)
    assert abs(status["last_commit_age_s"]) < 60


def test_it_waits_for_nothing_heavy(run: Run, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mvqkd.pipeline.cli import app\n"
        "try:\n    app(['status', sys.argv[1]])\nfinally:\n"
        "    heavy = {'torch', 'ray', 'lhotse', 'pyarrow', 's3fs', 'fsspec', 'transformers'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "run.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert "extract: not begun" in shown and shown.endswith("heavy: []\n")
