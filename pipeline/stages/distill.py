"""The distill stage: a student, trained from the index table."""

from typing import Any

from mvqkd.models.students.kinds import AnyStudentConfig
from mvqkd.pipeline.cluster.pool import Note, Pool, open_pool
from mvqkd.pipeline.errors import PoolError, StageError
from mvqkd.pipeline.run_folder import Run, digest
from mvqkd.pipeline.show.progress import bar, say
from mvqkd.pipeline.stages.find_speech import FoundSpeech, digest_of, find_speech, untranscribed_tables
from mvqkd.pipeline.stages.training_log import TrainingLog, read_points
from mvqkd.storage.artifacts import load_artifact
from mvqkd.storage.errors import ArtifactError, TableError
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.shared_place import NOT_SHARED, SharedPlaceError, require_seen
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.student_record import NAME, StudentRecord, load_record, verified_record
from mvqkd.workers.section import identity_of

# Settings that the student without codes does not have.
_OF_CODES_ONLY = {
    "loss_scale", "student_layer", "codebooks", "joint", "label_smoothing", "per_codebook", "distance", "targets",
    "untranscribed", "untranscribed_from",
}  # fmt: skip
MOST_THREADS = 8
"""More do not make one process faster."""


def distill_stage(run: Run, name: str | None = None) -> dict[str, Any]:
    """Train one student from the index table, or return the figures of the one that is there.

    Args:
        name: of the student; by default the one that `RunConfig.default_student` names.

    Raises:
        StageError: there is no table to train from, the training failed, or another one overtook it.
        SharedPlaceError: this process does not see what the workers wrote.
    """
    name = name or run.config.default_student()
    student, settings = run.config.student_settings(name)
    table = _need_table(run, settings)
    out = run.student(name)
    same_for_all = {
        "student": student.to_dict(),
        "distill": {key: value for key, value in identity_of(settings).items() if key not in _OF_CODES_ONLY},
        "contract": table.contract.digest(),
        "shards": sorted(table.committed()),
        **_initial(run, settings),
    }
    others = untranscribed_tables(run, settings, table)
    key = digest(
        {**same_for_all, "of_codes": settings.model_dump(include=_OF_CODES_ONLY), **digest_of(others)}
    )
    record = _existing(out)
    if record is None or record.digest != key:
        before = None if record is None else record.digest
        _train(run, name, student, settings, find_speech(run, settings, table, others), key)
        require_seen(out, f"{NAME}.json")
        record = load_record(out)
        if record.digest == before:
            raise SharedPlaceError(
                f"{out.full_url(NAME)}.json: still of the training before, though the new one has ended: "
                f"{NOT_SHARED}"
            )
    if record.digest != key:
        raise StageError(
            f"{out.url}: another training put its student here while this one ran; repeat this one with a "
            f"storage.root of its own, and table.path {run.table.url} to share the table"
        )
    if record.left_out:
        say(
            f"{name}: {len(record.left_out)} utterances could not be trained on, "
            f"see {out.full_url('student.json')}"
        )
    summary = {
        "name": name,
        "digest": key,
        "pair": digest(same_for_all),
        "url": out.url,
        "parameters": _num_parameters(out),
        "steps": record.steps,
        "epochs": settings.epochs,
        "loss_scale": settings.loss_scale,
        "left_out": len(record.left_out),
        **({} if record.valid_wer is None else {"valid_wer": record.valid_wer}),
    }
    run.reports.write("distill", {**summary, "curve": read_points(out, key)}, name)
    return summary


def _need_table(run: Run, settings: DistillConfig) -> IndexTable:
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
    return table


def _existing(out: Location) -> StudentRecord | None:
    """The student in a folder; None when there is none, or one that cannot be used and has to be trained again."""
    if not out.exists(f"{NAME}.json"):
        return None
    try:
        return verified_record(out)
    except ArtifactError as error:
        say(f"{error}")
        return None


def _num_parameters(out: Location) -> int:
    arrays, _ = load_artifact(out, NAME)
    return int(sum(array.size for array in arrays.values() if array.dtype.kind == "f"))


def _initial(run: Run, settings: DistillConfig) -> dict[str, str]:
    """What the student starts from, for its digest."""
    if settings.init is None:
        return {}
    location = open_location(settings.init, options=run.config.storage.options)
    try:
        return {"init": load_record(location).digest}
    except ArtifactError as error:
        raise StageError(f"distill.init: {error}; name the folder of a student that was trained") from error


def _train(
    run: Run, name: str, student: AnyStudentConfig, settings: DistillConfig, found: FoundSpeech, key: str
) -> None:
    from mvqkd.models.students.units import train_units
    from mvqkd.workers.distill.job import TrainJob

    units = train_units(student.units, found.texts, vocab_size=student.vocab_size) if found.texts else None
    with open_pool(run.config.cluster) as pool:
        use_gpu, have = _check_fits(run, settings, pool), pool.resources
        job = TrainJob(
            digest=key,
            speech=found.speech,
            # Trained on codes alone a student has units for the form's sake, which are not trained.
            units=("char", "?") if units is None else (units.kind, units.data),
            student=student,
            distill=settings,
            options=run.config.storage.options,
            out=run.student(name),
            teacher=run.config.teacher,
            quantizer=run.quantizer,
            # No more than one machine has: Ray waits for a larger one without a word.
            threads=max(1, min(MOST_THREADS, have.machine_cpus, have.cpus // settings.workers)),
        )
        with (
            bar(f"train {name}", total=float("inf"), unit="h") as show,
            TrainingLog(run.student(name), key) as log,
        ):

            def note(now: Note) -> None:
                log.add(now)
                figures = {"epoch": now["epoch"], "transducer": now["transducer_loss"], **now["head_losses"]}
                if now["valid_wer"] is not None:
                    figures["valid_wer"] = now["valid_wer"]
                show.update(
                    now["hours"],
                    total=now["hours"] / max(1e-9, now["done"]),
                    **figures,
                    utterances_per_s=now["utterances_per_s"],
                )

            try:
                pool.train(job, use_gpu=use_gpu, note=note)
            except PoolError as error:
                raise StageError(f"{name}: {error}") from error


def _check_fits(run: Run, settings: DistillConfig, pool: Pool) -> bool:
    """Whether to train on GPUs."""
    have = pool.resources
    use_gpu = bool(have.gpus) and settings.gpus_per_worker != 0
    gpus_each = 1.0 if settings.gpus_per_worker == "auto" else settings.gpus_per_worker
    too_many = settings.workers * gpus_each > have.gpus if use_gpu else settings.workers > have.cpus
    if run.config.cluster.address in ("local", "none") and too_many:
        raise StageError(
            f"distill.workers {settings.workers}: this machine has {have.cpus} CPUs and {have.gpus} GPUs for them; "
            "ask for less"
        )
    return use_gpu
