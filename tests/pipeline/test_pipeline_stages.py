"""The whole job through real Ray actors, Ray Train and storage, on a tiny corpus."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from tiny import copy_of, make_run, many_shards, objects, run_tree, write_corpus, write_run_file

from mvqkd.pipeline import run_all as whole
from mvqkd.pipeline import stages, students
from mvqkd.pipeline.cluster.dispatch import PoolError
from mvqkd.pipeline.show import progress
from mvqkd.storage.errors import ContractError, TableError
from mvqkd.storage.failures import read_failures

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def done(
    ray_session: None, corpus_root: Path, teacher_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """A finished run: its run file as a mapping, and its folder."""
    folder = tmp_path_factory.mktemp("done")
    tree = run_tree(corpus_root, teacher_path, folder / "run")
    whole.run_all(make_run(tree, folder))
    return tree, folder / "run"


def test_the_report_tells_what_a_newcomer_asks(done: tuple[dict[str, Any], Path], capsys: Any) -> None:
    report = json.loads((done[1] / "report.json").read_text())
    table = report["extract"]["table"]
    assert (report["plan"]["train_cuts"], table["rows"], table["failures"]) == (12, 12, 0)
    assert report["extract"]["speed"]["real_time_factor"] > 0
    assert 0 < report["fit"]["valid_rrl"] < 2
    for name in ("baseline", "mvqkd"):
        student = report["students"][name]
        assert student["score"]["wer"] >= 0
        assert student["score"]["utterances"] == 3
        assert student["curve"][-1]["step"] == student["steps"] > 0
        lines = (done[1] / "students" / name / "errors.jsonl").read_text().splitlines()
        assert {json.loads(line)["cut_id"] for line in lines} == {"test-000", "test-001", "test-002"}
    assert report["students"]["baseline"]["curve"][-1]["codebook_loss"] is None
    assert report["students"]["mvqkd"]["curve"][-1]["codebook_loss"] > 0
    whole.print_report(report)
    shown = capsys.readouterr().out
    for words in (
        "real-time factor",
        "RRL",
        "Bytes per hour",
        "float16 embeddings",
        "WER with MVQ-KD",
        str(done[1]),
    ):
        assert words in shown.replace("\n", "")
    assert (done[1] / "curves.png").stat().st_size > 5000


def test_every_stage_again_does_nothing(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    run = make_run(done[0], tmp_path)
    watched = [p for p in done[1].rglob("*") if p.is_file() and p.name not in ("report.json", "errors.jsonl")]
    before = {p: p.stat().st_mtime_ns for p in watched}
    speed = run.read_report()["extract"]["speed"]
    assert stages.fit_stage(run)["id"] == run.read_report()["fit"]["id"]
    assert stages.extract_stage(run)["shards_extracted"] == 0
    assert run.read_report()["extract"]["speed"] == speed
    students.distill_stage(run)
    students.decode_stage(run)
    assert {p: p.stat().st_mtime_ns for p in watched} == before


def test_a_fit_that_takes_longer_than_thought_says_so(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    notes = ({"fit": {"stage": "fit", "done": n, "total": n + 1}} for n in itertools.count())
    monkeypatch.setattr(stages, "read_board", lambda _: next(notes))
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    run = make_run(tree, tmp_path)
    stages.plan_stage(run)
    stages.fit_stage(run)
    rounds = re.findall(r"fit: fit: (\d+)/(\d+) rounds", capsys.readouterr().err)
    assert len(rounds) > 1
    assert all(int(total) == int(number) + 1 for number, total in rounds)


def test_table_on_s3_is_the_table_on_disk(
    done: tuple[dict[str, Any], Path], tmp_path: Path, s3_environment: S3Server
) -> None:
    endpoint = {"endpoint_url": s3_environment.endpoint_url, "region": "us-east-1"}
    tree = {**done[0], "storage": {"root": f"s3://{s3_environment.bucket}/{tmp_path.name}", **endpoint}}
    run = make_run(tree, tmp_path)
    stages.plan_stage(run)
    stages.fit_stage(run)
    stages.extract_stage(run)
    here = make_run(done[0], tmp_path)
    assert objects(run.table) == objects(here.table)
    assert len(objects(run.table)) > 3
    students.distill_stage(run)
    assert students.decode_stage(run) | {"errors": ""} == students.decode_stage(here) | {"errors": ""}


def wait_for_first_shard(table: Path, is_alive: Any) -> None:
    deadline = time.monotonic() + 200
    while not list(table.glob("shard-*.parquet")):
        assert is_alive() and time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.002)


def test_killed_driver_loses_no_shard(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    tree = many_shards(done, tmp_path)
    undisturbed = make_run({**tree, "table": {"path": str(tmp_path / "undisturbed")}}, tmp_path)
    stages.extract_stage(undisturbed)
    run_file = write_run_file(tree, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen(
        [sys.executable, "-m", "mvqkd", "extract", str(run_file)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    table = tmp_path / "run" / "table"
    wait_for_first_shard(table, lambda: driver.poll() is None)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3.0)  # its actors end with it, perhaps after the shard in hand
    run = make_run(tree, tmp_path)
    num_shards = len(stages.need_plan(run, "train").shards)
    left = num_shards - len(list(table.glob("shard-*.parquet")))
    assert 0 < left < num_shards
    assert stages.extract_stage(run)["shards_extracted"] == left
    assert objects(run.table) == objects(undisturbed.table)


def test_killed_actor_costs_nothing(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    tree = many_shards(done, tmp_path)
    run = make_run(tree, tmp_path)
    job = in_background(lambda: stages.extract_stage(run))
    wait_for_first_shard(tmp_path / "run" / "table", lambda: not job.done())
    os.kill(own_processes(b"ray::ExtractActor")[0], signal.SIGKILL)
    summary = job.result()
    num_shards = len(stages.need_plan(run, "train").shards)
    assert (summary["shards_extracted"], summary["shards_failed"]) == (num_shards, 0)
    undisturbed = make_run({**tree, "table": {"path": str(tmp_path / "undisturbed")}}, tmp_path)
    stages.extract_stage(undisturbed)
    assert objects(run.table) == objects(undisturbed.table)


def in_background(work: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def own_processes(title: bytes) -> list[int]:
    """Workers of this test's Ray, not of a stranger's on the same machine; at least one."""
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
    assert found, f"no process {title!r}"
    return found


def test_bad_utterances_are_left_out_and_listed(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", train=6)
    tree = {**copy_of(done, tmp_path, "quantizer"), "corpus": {"root": str(tmp_path / "corpus")}}
    run = make_run(tree, tmp_path)
    (tmp_path / "corpus/audio/train/train-004.flac").unlink()
    assert stages.plan_stage(run)["train_refused"] == 1
    broken = tmp_path / "corpus/audio/train/train-001.flac"
    broken.write_bytes(broken.read_bytes()[:3000])
    summary = stages.extract_stage(run)
    assert (summary["utterances_left_out"], summary["shards_failed"], summary["table"]["rows"]) == (1, 0, 4)
    (failure,) = read_failures(run.table)
    assert (failure.cut_id, failure.stage) == ("train-001", "load")
    assert str(broken) in failure.message
    assert stages.extract_stage(run)["shards_extracted"] == 0


def test_a_shard_that_keeps_failing_is_set_aside(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "quantizer", "plan"), tmp_path)
    plan = stages.need_plan(run, "train")
    damaged = tmp_path / "run/plan/train" / plan.shards[1].path
    whole_bytes = damaged.read_bytes()
    damaged.unlink()
    summary = stages.extract_stage(run)
    assert (summary["shards_failed"], summary["shards_extracted"]) == (1, len(plan.shards) - 1)
    (failure,) = read_failures(run.table)
    assert (failure.cut_id, failure.attempts) == (None, 3)
    assert str(damaged) in failure.message
    damaged.write_bytes(whole_bytes)
    assert stages.extract_stage(run)["shards_extracted"] == 1
    assert read_failures(run.table) == []
    assert objects(run.table) == objects(make_run(done[0], tmp_path).table)


def test_codes_of_different_quantizers_do_not_mix(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "table")
    run = make_run(tree, tmp_path, "quantizer.seed=7")
    stages.fit_stage(run)
    with pytest.raises(ContractError, match="quantizer_id"):
        stages.extract_stage(run)


def test_settings_that_do_not_fit_the_stored_quantizer(
    done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    with pytest.raises(stages.StageError, match="other settings of quantizer: num_codebooks 2, now 4"):
        stages.fit_stage(make_run(done[0], tmp_path, "quantizer.num_codebooks=4"))


def test_another_teacher_than_the_quantizers(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer"), tmp_path, "teacher.layer=1")
    with pytest.raises(PoolError, match="fitted on"):
        stages.extract_stage(run)


def test_a_truncated_table_file_is_named(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table"), tmp_path)
    victim = next(iter(sorted((tmp_path / "run/table").glob("shard-*.parquet"))))
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(TableError, match=victim.name):
        students.distill_stage(run)


def test_shards_of_an_earlier_plan_are_not_mixed_in(
    done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    tree = copy_of(done, tmp_path, "quantizer", "table")
    before = objects(make_run(tree, tmp_path).table)
    run = make_run(tree, tmp_path, "extract.shard_hours=0.002")
    with pytest.raises(stages.StageError, match=r"shards are not of this plan, such as shard-.*delete these"):
        stages.extract_stage(run)
    assert objects(run.table) == before


def test_audio_that_is_not_mounted_costs_the_shard_and_not_the_utterances(
    done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    write_corpus(tmp_path / "corpus", train=6)
    tree = {**copy_of(done, tmp_path, "quantizer"), "corpus": {"root": str(tmp_path / "corpus")}}
    run = make_run(tree, tmp_path, "extract.shard_hours=0.1")
    stages.plan_stage(run)
    (tmp_path / "corpus/audio").rename(tmp_path / "elsewhere")
    summary = stages.extract_stage(run)
    assert (summary["shards_failed"], summary["table"]["rows"]) == (1, 0)
    (failure,) = read_failures(run.table)
    assert "utterances cannot be read" in failure.message
    (tmp_path / "elsewhere").rename(tmp_path / "corpus/audio")
    summary = stages.extract_stage(run)
    assert (summary["shards_failed"], summary["table"]["rows"], read_failures(run.table)) == (0, 6, [])


@pytest.mark.parametrize(
    ("override", "stage", "message"),
    [
        ("extract.gpus_per_actor=1.0", stages.fit_stage, r"extract\.gpus_per_actor: a worker wants"),
        (
            "extract.cpus_per_actor=64.0",
            stages.extract_stage,
            r"extract\.cpus_per_actor.* a worker wants 64 CPUs",
        ),
        ("distill.workers=64", students.distill_stage, r"distill\.workers 64"),
    ],
)
def test_workers_that_fit_nowhere_are_refused(
    done: tuple[dict[str, Any], Path], tmp_path: Path, override: str, stage: Any, message: str
) -> None:
    parts = {stages.fit_stage: (), stages.extract_stage: ("quantizer",)}.get(stage, ("quantizer", "table"))
    run = make_run(copy_of(done, tmp_path, *parts), tmp_path, override)
    with pytest.raises((ValueError, stages.StageError), match=message):
        stage(run)


def test_a_damaged_student_is_trained_again(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table", "students"), tmp_path)
    weights = tmp_path / "run/students/mvqkd/student.safetensors"
    whole_bytes = weights.read_bytes()
    weights.write_bytes(whole_bytes[:-10])
    with pytest.raises(stages.StageError, match="mvqkd distill"):
        students.decode_stage(run)
    students.distill_stage(run)
    assert weights.read_bytes() == whole_bytes


def test_a_training_that_was_overtaken_says_so(
    done: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(
        copy_of(done, tmp_path, "plan", "quantizer", "table", "students"), tmp_path, "distill.seed=7"
    )
    # What lies there at the end is the student of another seed.
    monkeypatch.setattr(students, "_train", lambda *_: None)
    with pytest.raises(stages.StageError, match=r"another training.*storage\.root of its own"):
        students.distill_stage(run)


def test_a_reduction_is_of_two_students_that_differ_in_the_codes_only(
    done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table", "students", "report.json")
    report = make_run(tree, tmp_path).read_report()
    wer = {name: report["students"][name]["score"]["wer"] for name in ("baseline", "mvqkd")}
    assert report["relative_wer_reduction"] == pytest.approx(1 - wer["mvqkd"] / wer["baseline"])
    run = make_run(tree, tmp_path, "distill.epochs=1")
    with pytest.raises(stages.StageError, match=r"trained with distill\.epochs \d+, now 1; `mvqkd distill`"):
        students.decode_stage(run)
    students.distill_stage(run)
    students.decode_stage(run)
    assert run.read_report()["relative_wer_reduction"] is None


def test_a_test_part_without_audio_leaves_a_list(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    tree = {
        **copy_of(done, tmp_path, "quantizer", "table", "students"),
        "corpus": {"root": str(tmp_path / "corpus")},
    }
    run = make_run(tree, tmp_path)
    stages.plan_stage(run)
    shutil.rmtree(tmp_path / "corpus/audio/test")
    errors = tmp_path / "run/students/mvqkd/errors.jsonl"
    with pytest.raises(stages.StageError, match=str(errors)):
        students.decode_stage(run)
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [line["cut_id"] for line in lines] == ["test-000", "test-001", "test-002"]
    assert all("no such audio file" in line["error"] for line in lines)


@pytest.mark.parametrize(
    ("stage", "command"),
    [
        (stages.extract_stage, "mvqkd fit"),
        (students.distill_stage, "mvqkd extract"),
        (students.decode_stage, "mvqkd distill"),
    ],
)
def test_a_stage_before_its_time_says_what_to_run(
    corpus_root: Path, teacher_path: Path, tmp_path: Path, stage: Any, command: str
) -> None:
    with pytest.raises(stages.StageError, match=command):
        stage(make_run(run_tree(corpus_root, teacher_path, tmp_path / "run"), tmp_path))


def test_training_resumes_after_its_process_is_killed(
    done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    settings = ("distill.epochs=30", "distill.checkpoint_steps=5", "distill.loss_scale=0.2")
    undisturbed = make_run(
        tree, tmp_path, *settings, f"storage.root={tmp_path}/other", f"table.path={tmp_path}/run/table"
    )
    students.distill_stage(undisturbed)
    run = make_run(tree, tmp_path, *settings)
    job = in_background(lambda: students.distill_stage(run))
    deadline = time.monotonic() + 200
    while not list((tmp_path / "run/students/mvqkd/checkpoints").rglob("state.pt")):
        assert not job.done() and time.monotonic() < deadline
        time.sleep(0.01)
    for process in own_processes(b"ray::RayTrainWorker"):
        os.kill(process, signal.SIGKILL)
    job.result()
    weights = [
        (Path(r.student("mvqkd").base_path) / "student.safetensors").read_bytes() for r in (run, undisturbed)
    ]
    assert weights[0] == weights[1]
