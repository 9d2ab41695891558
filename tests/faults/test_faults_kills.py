"""Processes are killed in the middle of the work: nothing that was committed is lost, and the result is the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import s3fs
from s3_server import S3Server
from tiny import Done, copy_of, make_run, many_shards, objects, on_s3, write_run_file

from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.plan import need_plan

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
ON_RAY = {"cluster": {"address": "local", "num_cpus": 2}}


def test_killed_driver_loses_no_shard(ray_session: None, done: Done, tmp_path: Path) -> None:
    tree = many_shards(done, tmp_path)
    undisturbed = make_run({**tree, "table": {"path": str(tmp_path / "undisturbed")}}, tmp_path)
    extract_stage(undisturbed)
    # On the cluster of these tests, which lives on when the driver dies.
    joined = {"address": ray.get_runtime_context().gcs_address}
    extract = {**tree["extract"], "actors": 1}
    run_file = write_run_file({**tree, "extract": extract, "cluster": joined}, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen(
        [sys.executable, "-m", "mvqkd", "extract", str(run_file)], env=environment, stderr=subprocess.DEVNULL
    )
    table = tmp_path / "run" / "table"
    wait_for_first_shard(table, lambda: driver.poll() is None)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while own_processes(b"ray::ExtractActor", some=False):
        time.sleep(0.1)  # its actors end with it, perhaps after the shard in hand
    run = make_run(tree, tmp_path)
    num_shards = len(need_plan(run, "train").shards)
    left = num_shards - len(list(table.glob("shard-*.parquet")))
    assert 0 < left < num_shards
    summary = extract_stage(run)
    assert summary["shards_extracted"] == left
    assert objects(run.table) == objects(undisturbed.table)
    expected = undisturbed.reports.read("extract")["table"]
    assert run.reports.read("extract")["table"] == {**expected, "url": run.table.url}


def test_killed_actor_costs_nothing(ray_session: None, done: Done, tmp_path: Path) -> None:
    tree = many_shards(done, tmp_path)
    run = make_run({**tree, **ON_RAY}, tmp_path)
    job = in_background(lambda: extract_stage(run))
    wait_for_first_shard(tmp_path / "run" / "table", lambda: not job.done())
    os.kill(own_processes(b"ray::ExtractActor")[0], signal.SIGKILL)
    summary = job.result()
    num_shards = len(need_plan(run, "train").shards)
    assert (summary["shards_extracted"], summary["shards_failed"]) == (num_shards, 0)
    undisturbed = make_run({**tree, "table": {"path": str(tmp_path / "undisturbed")}}, tmp_path)
    extract_stage(undisturbed)
    assert objects(run.table) == objects(undisturbed.table)


def test_training_resumes_after_its_process_is_killed(
    ray_session: None, done: Done, tmp_path: Path, s3_environment: S3Server
) -> None:
    """Ray Train, checkpoints in S3, a killed process: the weights are those of one process on a disk."""
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    settings = ("distill.epochs=30", "distill.checkpoint_steps=5", "distill.loss_scale=0.2")
    settings = (*settings, f"table.path={tmp_path}/run/table")
    undisturbed = make_run(tree, tmp_path, *settings)
    distill_stage(undisturbed)
    run = make_run(on_s3(tree, s3_environment, tmp_path.name), tmp_path, *settings)
    job = in_background(lambda: distill_stage(run))
    checkpoints = s3fs.S3FileSystem(endpoint_url=s3_environment.endpoint_url, use_listings_cache=False)
    folder = run.student("mvqkd").join("checkpoints").base_path
    deadline = time.monotonic() + 200
    while not checkpoints.glob(f"{folder}/**/state.pt"):
        assert not job.done() and time.monotonic() < deadline
        time.sleep(0.05)
    for process in own_processes(b"ray::RayTrainWorker"):
        os.kill(process, signal.SIGKILL)
    job.result()
    weights = [r.student("mvqkd").read_bytes("student.safetensors") for r in (run, undisturbed)]
    assert weights[0] == weights[1]
    ours, theirs = ({**decode_stage(r), "errors": ""} for r in (run, undisturbed))
    assert ours == theirs


def wait_for_first_shard(table: Path, is_alive: Any) -> None:
    deadline = time.monotonic() + 200
    while not list(table.glob("shard-*.parquet")):
        assert is_alive() and time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.002)


def in_background(work: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def own_processes(title: bytes, *, some: bool = True) -> list[int]:
    """Workers of this test's Ray, not of a stranger's on the same machine; `some`: at least one."""
    parents: dict[int, int] = {}
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if (folder / "cmdline").read_bytes().startswith(title):
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile

    def descends(process: int) -> bool:
        while process and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    found = [process for process in found if descends(process)]
    assert found or not some, f"no process {title!r}"
    return found
