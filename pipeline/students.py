"""The student stages: distill by a Ray Train job, decode the test part."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ray.train import TrainingFailedError

from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import Units, load_units, train_units
from mvqkd.pipeline.cluster.connect import cluster, read_board, resources, start_board
from mvqkd.pipeline.cluster.train_job import STUDENT, TrainJob
from mvqkd.pipeline.run_folder import SAMPLE_RATE_HZ, Run, digest
from mvqkd.pipeline.show.progress import Bar, bar, say
from mvqkd.pipeline.stages import StageError, differences, need_plan
from mvqkd.storage.artifacts import load_artifact, read_json, write_json
from mvqkd.storage.errors import ArtifactError, ObjectMissingError, StorageError, TableError
from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.distill.batches import scan_table
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.plan import read_shard_cuts
from mvqkd.workers.recognize.score import Recognized, Recognizer, score
from mvqkd.workers.teacher import choose_device

# Settings that the student without codes does not have.
_OF_CODES_ONLY = {"loss_scale", "student_layer", "codebooks"}
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
    name, settings = _named(run, name)
    try:
        table = IndexTable.open(run.table)
    except TableError as error:
        raise StageError(f"{error}; `mvqkd extract` makes it") from error
    if settings.codebooks is not None and settings.codebooks > table.contract.num_codebooks:
        raise StageError(
            f"distill.codebooks {settings.codebooks}: {table.location.url} has {table.contract.num_codebooks} codes "
            "a frame; lower it, or leave it out to take all"
        )
    if not table.committed():
        raise StageError(f"{run.table.url}: the table has no shards yet; `mvqkd extract` makes them")
    out = run.student(name)
    same_for_both = {
        "student": run.config.student.to_dict(),
        "distill": settings.model_dump(exclude=_SPEED_ONLY | _OF_CODES_ONLY),
        "contract": table.contract.digest(),
        "shards": sorted(table.committed()),
    }
    key = digest({**same_for_both, "of_codes": settings.model_dump(include=_OF_CODES_ONLY)})
    loaded = _load(out)
    if loaded is None or loaded[1]["digest"] != key:
        _train(run, name, settings, table, out, key)
        loaded = load_artifact(out, STUDENT)
    arrays, existing = loaded
    if existing["digest"] != key:
        raise StageError(
            f"{out.url}: another training put its student here while this one ran; repeat this one with a "
            f"storage.root of its own, and table.path {run.table.url} to share the table"
        )
    if existing["left_out"]:
        say(
            f"{name}: {len(existing['left_out'])} utterances could not be trained on, "
            f"see {out.full_url('student.json')}"
        )
    summary = {
        "name": name,
        "digest": key,
        "pair": digest(same_for_both),
        "url": out.url,
        "parameters": int(sum(array.size for array in arrays.values() if array.dtype == np.float32)),
        "steps": existing["steps"],
        "epochs": settings.epochs,
        "loss_scale": settings.loss_scale,
        "left_out": len(existing["left_out"]),
    }
    _add_to_report(run, name, {**summary, "curve": _read_curve(out, key)})
    return summary


def _named(run: Run, name: str | None) -> tuple[str, DistillConfig]:
    """A student of the run, by default what `distill.loss_scale` says, and its settings."""
    settings = run.config.distill
    name = name or ("mvqkd" if settings.loss_scale else "baseline")
    return name, settings.model_copy(update={"loss_scale": 0.0}) if name == "baseline" else settings


def _train(run: Run, name: str, settings: DistillConfig, table: IndexTable, out: Location, key: str) -> None:
    # Once, here: the workers need not, and a damaged or foreign file shows before any of them is asked for.
    durations, texts = scan_table(table)
    units = train_units(run.config.student.units, texts, vocab_size=run.config.student.vocab_size)
    with cluster(run.config.cluster):
        cpus, gpus = resources()
        use_gpu = bool(gpus) and settings.gpus_per_worker != 0
        gpus_each = 1.0 if settings.gpus_per_worker == "auto" else settings.gpus_per_worker
        too_many = settings.workers * gpus_each > gpus if use_gpu else settings.workers > cpus
        if run.config.cluster.address == "local" and too_many:
            raise StageError(
                f"distill.workers {settings.workers}: this machine has {cpus} CPUs and {gpus} GPUs for them; "
                "ask for less"
            )
        board = start_board()
        job = TrainJob(
            digest=key,
            table=table,
            durations=durations,
            units=(units.kind, units.data),
            student=run.config.student,
            distill=settings,
            options=run.config.storage.options,
            out=out,
            threads=max(1, min(8, cpus // settings.workers)),
            board=board,
        )
        with _shown(board, name, out, key):
            try:
                job.run(use_gpu=use_gpu)
            except TrainingFailedError as error:
                raise StageError(f"the training of {name} failed: {_root_cause(error)}") from error


@contextmanager
def _shown(board: Any, name: str, out: Location, key: str) -> Iterator[None]:
    """Show the job's progress while it runs, and keep its curve beside the student."""
    stop = threading.Event()
    curve = _read_curve(out, key)

    def look(show: Bar) -> None:
        note = read_board(board).get("train")
        if note is None:
            return
        if not curve or note["step"] > curve[-1]["step"]:
            curve.append(note)
            write_json(out, "curve.json", {"digest": key, "points": curve})
        figures = {"epoch": note["epoch"], "transducer": note["transducer_loss"]}
        if note["codebook_loss"] is not None:
            figures["codebook"] = note["codebook_loss"]
        show.update(
            note["step"], total=note["total_steps"], **figures, utterances_per_s=note["utterances_per_s"]
        )

    def watch(show: Bar) -> None:
        while not stop.wait(1.0):
            try:
                look(show)
            except StorageError as error:
                say(f"the curve is not written for now: {error}")

    with bar(f"train {name}", total=float("inf"), unit="steps") as progress:
        watcher = threading.Thread(target=watch, args=(progress,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
        look(progress)


def _read_curve(out: Location, key: str) -> list[dict[str, Any]]:
    """Points of an interrupted training of the same digest."""
    try:
        content = read_json(out, "curve.json")
    except ObjectMissingError:
        return []
    return content["points"] if content["digest"] == key else []


def _load(out: Location) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The student in a folder; None when there is none, or one that cannot be used and has to be trained again."""
    if not out.exists(f"{STUDENT}.json"):
        return None
    try:
        return load_artifact(out, STUDENT)
    except ArtifactError as error:
        say(f"{error}")
        return None


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
    """Recognize the test part with a student; every utterance's errors go to `errors.jsonl` beside it.

    Raises:
        StageError: there is no such student, or it was trained with other settings than the run has now.
    """
    name, settings = _named(run, name)
    plan = need_plan(run, "test")
    out = run.student(name)
    try:
        student, units, metadata = load_student(out)
    except ArtifactError as error:
        raise StageError(f"{error}; `mvqkd distill` trains it") from error
    # Else its errors would be reported as those of settings that it never saw.
    changed = differences(
        {f"distill.{key}": value for key, value in metadata["distill"].items() if key not in _SPEED_ONLY}
        | {f"student.{key}": value for key, value in metadata["student"].items()},
        {f"distill.{key}": value for key, value in settings.model_dump(exclude=_SPEED_ONLY).items()}
        | {f"student.{key}": value for key, value in run.config.student.to_dict().items()},
    )
    if changed:
        raise StageError(f"{out.url} was trained with {changed}; `mvqkd distill` trains it anew")
    recognizer = Recognizer(
        student.to(choose_device("auto")),
        units,
        loader=AudioLoader(SAMPLE_RATE_HZ, s3=run.config.storage.options),
        batch_seconds=run.config.distill.batch_seconds,
    )
    results: list[Recognized | UtteranceError] = []
    began = time.monotonic()
    with bar(f"decode {name}", total=plan.num_cuts, unit="utterances") as progress:
        for shard in plan.shards:
            for result in recognizer(read_shard_cuts(run.plan("test"), shard)):
                results.append(result)
                progress.update(len(results), utterances_per_s=len(results) / (time.monotonic() - began))
    lines = [
        result.to_dict()
        if isinstance(result, Recognized)
        else {"cut_id": result.cut_id, "error": result.problem}
        for result in results
    ]
    lines.sort(key=lambda line: line["cut_id"])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    out.replace("errors.jsonl", text.encode())
    try:
        totals = score(results)
    except ValueError as error:
        raise StageError(f"{error}: {out.full_url('errors.jsonl')}") from error
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
    students = {**students, name: {**student, **content}}
    run.add_to_report("students", students)
    run.add_to_report("relative_wer_reduction", _relative_reduction(students))


def _relative_reduction(students: dict[str, Any]) -> float | None:
    """Of the word error rate, by the codes; None unless the two students differ in nothing else."""
    pair = [students.get(name, {}) for name in ("baseline", "mvqkd")]
    if (
        not all("score" in student and "pair" in student for student in pair)
        or pair[0]["pair"] != pair[1]["pair"]
    ):
        return None
    without, with_codes = (student["score"]["wer"] for student in pair)
    return 1 - with_codes / without if without else None
