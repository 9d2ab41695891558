"""The student stages: distill by a Ray Train job, decode the test part."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import torch
from ray.train import TrainingFailedError

from models.student import ConformerTransducer, StudentConfig
from models.units import Units, load_units
from pipeline.board import ProgressBoard
from pipeline.cluster import cluster, resources
from pipeline.progress import bar, say
from pipeline.run import SAMPLE_RATE_HZ, Run, digest
from pipeline.stages import StageError, need_plan
from pipeline.train_job import STUDENT, TrainJob
from storage.artifacts import load_artifact, read_json, write_json
from storage.errors import ArtifactError, ObjectMissingError, TableError
from storage.filesystem import Location
from storage.table import IndexTable
from workers.audio import AudioError, AudioLoader
from workers.distill.scoring import Recognized, Recognizer, score
from workers.distill.settings import DistillConfig
from workers.shards import read_shard_cuts
from workers.teacher import choose_device

# Settings that change how fast a training runs, but not what comes out.
_SPEED_ONLY = {
    "baseline",
    "cache_mb",
    "decode_threads",
    "max_failures",
    "gpus_per_worker",
    "checkpoint_steps",
}


def student_names(config: DistillConfig) -> list[str]:
    """The students of a run: `baseline` is the same one without codes."""
    if config.loss_scale == 0:
        return ["baseline"]
    return ["baseline", "mvqkd"] if config.baseline else ["mvqkd"]


def distill_stage(run: Run, name: str | None = None) -> dict[str, Any]:
    """Train one student from the index table, or return the figures of the one that is there.

    Args:
        name: `mvqkd` or `baseline`; by default what `distill.loss_scale` says.
    """
    name = name or ("mvqkd" if run.config.distill.loss_scale else "baseline")
    settings = run.config.distill
    if name == "baseline":
        settings = settings.model_copy(update={"loss_scale": 0.0})
    try:
        table = IndexTable.open(run.table)
    except TableError as error:
        raise StageError(f"{error}; `mvqkd extract` makes it") from error
    if not table.committed():
        raise StageError(f"{run.table.url}: the table has no shards yet; `mvqkd extract` makes them")
    out = run.student(name)
    key = digest(
        {
            "student": asdict(run.config.student),
            "distill": settings.model_dump(exclude=_SPEED_ONLY),
            "contract": table.contract.digest(),
            "shards": sorted(table.committed()),
        }
    )
    existing = _read_metadata(out)
    if existing is None or existing["digest"] != key:
        _train(run, name, settings, table, out, key)
        existing = _read_metadata(out)
        assert existing is not None
    if existing["left_out"]:
        say(
            f"{name}: {len(existing['left_out'])} utterances could not be trained on, "
            f"see {out.full_url('student.json')}"
        )
    arrays, _ = load_artifact(out, STUDENT)
    summary = {
        "name": name,
        "digest": key,
        "url": out.url,
        "parameters": int(sum(array.size for array in arrays.values() if array.dtype == np.float32)),
        "steps": existing["steps"],
        "epochs": settings.epochs,
        "loss_scale": settings.loss_scale,
        "left_out": len(existing["left_out"]),
    }
    _add_to_report(run, name, {**summary, "curve": read_json(out, "curve.json")["points"]})
    return summary


def _train(run: Run, name: str, settings: DistillConfig, table: IndexTable, out: Location, key: str) -> None:
    # Reads every footer: a damaged or foreign file shows here, before any worker is asked for.
    table.dataset()
    with cluster(run.config.cluster):
        cpus, gpus = resources()
        board = ray.remote(num_cpus=0)(ProgressBoard).remote()
        job = TrainJob(
            digest=key,
            table=table,
            student=run.config.student,
            distill=settings,
            options=run.config.storage.options,
            out=out,
            threads=max(1, min(8, cpus // settings.workers)),
            board=board,
        )
        with _shown(board, name, out, key):
            try:
                job.run(use_gpu=bool(gpus) and settings.gpus_per_worker != 0)
            except TrainingFailedError as error:
                raise StageError(f"the training of {name} failed: {_root_cause(error)}") from error


@contextmanager
def _shown(board: Any, name: str, out: Location, key: str) -> Iterator[None]:
    """Show the job's progress while it runs, and keep its curve beside the student."""
    stop = threading.Event()
    curve = _read_curve(out, key)

    def watch(show: Any) -> None:
        while True:
            ended = stop.wait(1.0)
            note = ray.get(board.get.remote()).get("train")
            if note is not None:
                if not curve or note["step"] > curve[-1]["step"]:
                    curve.append(note)
                    write_json(out, "curve.json", {"digest": key, "points": curve})
                figures = {"epoch": note["epoch"], "transducer": note["transducer_loss"]}
                if note["codebook_loss"] is not None:
                    figures["codebook"] = note["codebook_loss"]
                show.update(note["step"], total=note["total_steps"], **figures)
            if ended:
                return

    with bar(f"train {name}", total=float("inf"), unit="steps") as progress:
        watcher = threading.Thread(target=watch, args=(progress,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _read_curve(out: Location, key: str) -> list[dict[str, Any]]:
    """Points of an interrupted training of the same digest."""
    try:
        content = read_json(out, "curve.json")
    except ObjectMissingError:
        return []
    return content["points"] if content["digest"] == key else []


def _read_metadata(out: Location) -> dict[str, Any] | None:
    try:
        metadata = read_json(out, f"{STUDENT}.json")
    except ObjectMissingError:
        return None
    assert isinstance(metadata, dict)
    return metadata


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def load_student(location: Location) -> tuple[ConformerTransducer, Units, dict[str, Any]]:
    """A trained student (CPU), its units and its metadata.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    arrays, metadata = load_artifact(location, STUDENT)
    units = load_units(metadata["units"]["kind"], metadata["units"]["data"])
    with_ctc = metadata["distill"]["ctc_scale"] > 0
    student = ConformerTransducer(StudentConfig(**metadata["student"]), len(units), with_ctc=with_ctc)
    student.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return student.eval(), units, metadata


def decode_stage(run: Run, name: str | None = None) -> dict[str, Any]:
    """Recognize the test part with a student; every utterance's errors go to `errors.jsonl` beside it."""
    name = name or ("mvqkd" if run.config.distill.loss_scale else "baseline")
    plan = need_plan(run, "test")
    out = run.student(name)
    try:
        student, units, metadata = load_student(out)
    except ArtifactError as error:
        raise StageError(f"{error}; `mvqkd distill` trains it") from error
    recognizer = Recognizer(
        student.to(choose_device("auto")),
        units,
        loader=AudioLoader(SAMPLE_RATE_HZ, s3=run.config.storage.options),
        batch_seconds=run.config.distill.batch_seconds,
    )
    results: list[Recognized | AudioError] = []
    with bar(f"decode {name}", total=plan.num_cuts, unit="utterances") as progress:
        for shard in plan.shards:
            for result in recognizer(read_shard_cuts(run.plan("test"), shard)):
                results.append(result)
                progress.update(len(results))
    totals = score(results)
    lines = [
        result.to_dict()
        if isinstance(result, Recognized)
        else {"cut_id": result.cut_id, "error": result.problem}
        for result in results
    ]
    lines.sort(key=lambda line: line["cut_id"])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    out.replace("errors.jsonl", text.encode())
    if totals.left_out:
        say(f"{totals.left_out} test utterances could not be decoded, see {out.full_url('errors.jsonl')}")
    summary = {**asdict(totals), "errors": out.full_url("errors.jsonl"), "digest": metadata["digest"]}
    _add_to_report(run, name, {"score": summary})
    return summary


def _add_to_report(run: Run, name: str, content: dict[str, Any]) -> None:
    """Put figures of one student into the report; those of another training of it are dropped."""
    students = run.read_report().get("students", {})
    student = students.get(name, {})
    key = content.get("digest", content.get("score", {}).get("digest"))
    if student.get("digest", key) != key:
        student = {}
    run.add_to_report("students", {**students, name: {**student, **content}})
