"""The distill stage: a student, trained from the index table."""

from typing import Any

from mvqkd.models.students.config import StudentConfig
from mvqkd.pipeline.cluster.pool import Note, Pool, open_pool
from mvqkd.pipeline.errors import PoolError, StageError
from mvqkd.pipeline.run_folder import Run, digest
from mvqkd.pipeline.show.progress import bar, say
from mvqkd.storage.artifacts import load_artifact, read_json, write_json
from mvqkd.storage.errors import ArtifactError, ObjectMissingError, StorageError, TableError
from mvqkd.storage.location import Location
from mvqkd.storage.shared_place import NOT_SHARED, SharedPlaceError, require_seen
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.student_record import NAME, StudentRecord, load_record, verified_record
from mvqkd.workers.section import identity_of

# Settings that the student without codes does not have.
_OF_CODES_ONLY = {"loss_scale", "student_layer", "codebooks"}
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
    }
    key = digest({**same_for_all, "of_codes": settings.model_dump(include=_OF_CODES_ONLY)})
    record = _existing(out)
    if record is None or record.digest != key:
        before = None if record is None else record.digest
        _train(run, name, student, settings, table, key)
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
    }
    run.reports.write("distill", {**summary, "curve": _read_curve(out, key)}, name)
    return summary


def _need_table(run: Run, settings: DistillConfig) -> IndexTable:
    try:
        table = IndexTable.open(run.table)
    except TableError as error:
        raise StageError(f"{error}; `mvqkd extract` makes it") from error
    table.contract.require_payload("codes", where=table.location.url)
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


def _train(
    run: Run, name: str, student: StudentConfig, settings: DistillConfig, table: IndexTable, key: str
) -> None:
    from mvqkd.models.students.units import train_units
    from mvqkd.workers.distill.batches import scan_table
    from mvqkd.workers.distill.job import TrainJob

    # Once, here: the workers need not, and a damaged or foreign file shows before any of them is asked for.
    durations, texts = scan_table(table)
    units = train_units(student.units, texts, vocab_size=student.vocab_size)
    with open_pool(run.config.cluster) as pool:
        use_gpu, have = _check_fits(run, settings, pool), pool.resources
        job = TrainJob(
            digest=key,
            table=table,
            durations=durations,
            units=(units.kind, units.data),
            student=student,
            distill=settings,
            root=run.corpus_root,
            options=run.config.storage.options,
            out=run.student(name),
            # No more than one machine has: Ray waits for a larger one without a word.
            threads=max(1, min(MOST_THREADS, have.machine_cpus, have.cpus // settings.workers)),
        )
        with bar(f"train {name}", total=float("inf"), unit="steps") as show:
            curve = _Curve(run.student(name), key)

            def note(now: Note) -> None:
                curve.add(now)
                figures = {"epoch": now["epoch"], "transducer": now["transducer_loss"], **now["head_losses"]}
                show.update(
                    now["step"], total=now["total_steps"], **figures, utterances_per_s=now["utterances_per_s"]
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


class _Curve:
    """The points of a training, kept beside the student as they come."""

    def __init__(self, out: Location, key: str) -> None:
        self._out, self._key = out, key
        self._points = _read_curve(out, key)

    def add(self, note: Note) -> None:
        """Keep a point that is new."""
        if self._points and note["step"] <= self._points[-1]["step"]:
            return
        self._points.append(note)
        try:
            write_json(self._out, "curve.json", {"digest": self._key, "points": self._points})
        except StorageError as error:
            say(f"the curve is not written for now: {error}")


def _read_curve(out: Location, key: str) -> list[dict[str, Any]]:
    """Points of an interrupted training of the same digest."""
    try:
        content = read_json(out, "curve.json")
    except ObjectMissingError:
        return []
    return content["points"] if content["digest"] == key else []
