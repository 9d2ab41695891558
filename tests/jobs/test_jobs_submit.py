"""The whole way to a cluster and back: submitted, left alone, killed in the middle, resumed; exit codes and status."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_head import REPOSITORY, SECRET, RayHead, descendants
from tiny import Done, make_run, many_shards, objects

from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.workers.plan import read_shard_cuts

pytestmark = pytest.mark.integration

LIMIT_S = 240


def test_submitted_killed_resumed(head: RayHead, done: Done, tmp_path: Path) -> None:
    tree = many_shards(done, tmp_path)
    tree["extract"]["actors"] = 1
    undisturbed = make_run({**tree, "table": {"path": str(tmp_path / "undisturbed")}}, tmp_path)
    lost = lose_a_shard(undisturbed)
    assert extract_stage(undisturbed)["shards_failed"] == 1
    # `local` is the job's own cluster inside of a job.
    tree["cluster"] = {"address": "local"}
    run, command = make_run(tree, tmp_path), Command(head, tmp_path)
    first = command.start("extract")
    name = wait_for(lambda: re.search(r"submitted (mvqkd-extract-\w+-1): python", first.errors()))[1]
    assert re.search(
        r"uploaded mvqkd [\d.]+: \d+ Python files, \d\.\d MB\nuploaded run.yaml: 0.\d kB", first.errors()
    )

    same = command.start("extract", "--no-wait", "--json")
    other = command.start("extract", "--set", "extract.actors=2")
    first.process.send_signal(signal.SIGINT)
    assert first.ended() == 130
    assert (
        f"{name} goes on without you" in first.errors()
        and f"ray job stop --address {head.dashboard} {name}" in first.errors()
    )
    assert other.ended() == 2 and f"is at work as {name}, with other settings" in other.errors()
    assert same.ended() == 0, same.errors()
    assert json.loads(same.output()) == {"submission_id": name, "exit_code": 0}

    followed = command.start("extract")
    table = tmp_path / "run/table"
    wait_for(lambda: list(table.glob("shard-*.parquet")))
    assert len(processes_of(head, b"gcs_server")) == 1, "no second Ray"
    os.kill(processes_of(head, b"-m mvqkd extract")[0], signal.SIGKILL)
    assert followed.ended() == 128 + signal.SIGKILL
    assert f"{name} is this very job and runs already" in followed.errors()
    wait_for(lambda: not processes_of(head, b"ray::ExtractActor"))
    committed = {path.name: path.stat().st_mtime_ns for path in table.glob("shard-*.parquet")}
    status = command.status()
    assert status["shards"]["planned"] == len(need_plan(run, "train").shards)
    assert status["shards"]["done"] == len(committed) < status["shards"]["planned"]
    assert status["driver"]["job"] == name

    second = command.start("extract", "--json")
    assert second.ended() == 3, "the exit code of the command itself, for a shard that failed"
    result = json.loads(second.output().splitlines()[-1])
    assert (result["shards_found_done"], result["shards_failed"]) == (len(committed), 1)
    assert {name: (table / name).stat().st_mtime_ns for name in committed} == committed
    assert objects(run.table) == objects(undisturbed.table)
    status = command.status()
    assert (status["state"], status["shards"]["failed"]) == ("done", 1)
    assert (
        SECRET not in command.what_ray_tells()
        and head.environment["RAY_AUTH_TOKEN"] not in command.what_ray_tells()
    )
    as_a_ray_user_types_it(head, tmp_path, run, lost)


def as_a_ray_user_types_it(head: RayHead, folder: Path, run: Run, lost: dict[Path, bytes]) -> None:
    """`ray job submit --working-dir . -- mvqkd extract run.yaml`, with the lost audio back in its place."""
    for path, content in lost.items():
        path.write_bytes(content)
    project = folder / "project"
    project.mkdir()
    (folder / "run.yaml").rename(project / "run.yaml")
    ray = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head.dashboard]
    typed = [*ray, "--working-dir", ".", "--", "mvqkd", "extract", "run.yaml"]
    ended = subprocess.run(
        typed, cwd=project, env=head.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "shards_extracted: 1" in ended.stdout
    assert run.reports.read("extract")["table"]["failures"] == 0


class Command:
    """`mvqkd` in a folder with a run file, as a user of a head."""

    def __init__(self, head: RayHead, folder: Path) -> None:
        self._head, self._folder, self._count = head, folder, 0
        self._environment = {**head.environment, "PYTHONPATH": os.fspath(REPOSITORY)}

    def start(self, stage: str, *options: str) -> "Started":
        self._count += 1
        return Started(
            ["submit", stage, "run.yaml", "--address", self._head.dashboard, *options],
            self._folder,
            self._environment,
            self._folder / f"command-{self._count}",
        )

    def status(self) -> dict[str, Any]:
        # Nothing of the cluster is in its environment: it looks at storage alone.
        environment = {k: v for k, v in self._environment.items() if not k.startswith("RAY_")}
        told = Started(["status", "run.yaml", "--json"], self._folder, environment, self._folder / "status")
        assert told.ended() == 0, told.errors()
        return json.loads(told.output())

    def what_ray_tells(self) -> str:
        """Of its jobs, to whom it lets in."""
        token = {"Authorization": f"Bearer {self._environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self._head.dashboard}/api/jobs/", headers=token)
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()


class Started:
    """A command that runs, with its output in two files."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], out: Path) -> None:
        self._out, self._errors = out.with_suffix(".out"), out.with_suffix(".err")
        with self._out.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mvqkd", *words],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=errors,
            )

    def output(self) -> str:
        return self._out.read_text()

    def errors(self) -> str:
        return self._errors.read_text()

    def ended(self) -> int:
        return self.process.wait(timeout=LIMIT_S)


def lose_a_shard(run: Run) -> dict[Path, bytes]:
    """Remove the audio of a shard, so that it cannot be extracted; what was removed."""
    plan = need_plan(run, "train")
    shard = next(shard for shard in plan.shards if shard.num_cuts > 1)
    paths = [Path(cut.recording.sources[0].source) for cut in read_shard_cuts(plan.location, shard)]
    lost = {path: path.read_bytes() for path in (Path(run.corpus_root or "") / path for path in paths)}
    for path in lost:
        path.unlink()
    return lost


def processes_of(head: RayHead, words: bytes) -> list[int]:
    found = []
    for process in descendants(head.process):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words in command and not command.startswith(b"/bin/sh"):
            found.append(process)
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
