"""What a worker of a stage asks for, and what it is built with."""

from pathlib import Path

from mvqkd.pipeline.cluster.pool import Resources, Share
from mvqkd.pipeline.run_folder import Run
from mvqkd.workers.batch_bound import DEFAULT_SECONDS
from mvqkd.workers.embed import EmbedderSettings
from mvqkd.workers.quantizer_record import QuantizerRecord
from mvqkd.workers.teacher import TeacherConfig
from mvqkd.workers.teacher_record import TeacherRecord

MOST_THREADS = 8
"""More do not make one process faster."""


def fit_share(run: Run, have: Resources) -> Share:
    """One worker with all of a machine that it can use."""
    return Share(
        workers=1,
        cpus=min(have.machine_cpus, MOST_THREADS),
        gpus=_gpus_each(run, have),
        keys="extract.gpus_per_actor",
    )


def extract_share(run: Run, have: Resources) -> Share:
    """As many workers as `extract.actors` says, by default one for each GPU, or for each `cpus_per_actor` CPUs."""
    config = run.config.extract
    gpus = _gpus_each(run, have)
    auto = have.gpus / gpus if gpus else have.cpus / config.cpus_per_actor
    return Share(
        workers=max(1, int(auto)) if config.actors == "auto" else config.actors,
        cpus=config.cpus_per_actor,
        gpus=gpus,
        keys="extract.cpus_per_actor, extract.gpus_per_actor",
    )


def decode_share(run: Run, have: Resources) -> Share:
    """One worker for each GPU that students are trained on; one with many threads where there is none."""
    wanted = run.config.distill.gpus_per_worker
    gpus = float(wanted) if wanted != "auto" else float(have.gpus > 0)
    if not have.gpus:
        gpus = 0.0
    return Share(
        workers=max(1, int(have.gpus / gpus)) if gpus else 1,
        cpus=1.0 if gpus else min(have.machine_cpus, MOST_THREADS),
        gpus=gpus,
        keys="distill.gpus_per_worker",
    )


def embedder_settings(
    run: Run, share: Share, record: QuantizerRecord | TeacherRecord | None = None
) -> EmbedderSettings:
    """Of the workers that run the teacher.

    Args:
        record: of the quantizer, whose fit found out how large batches should be, if `extract.batch_seconds` is `auto`;
            or of the teacher. The fit itself has none.
    """
    wanted, found = run.config.extract.batch_seconds, None if record is None else record.batch_seconds
    auto = max(found or DEFAULT_SECONDS, run.config.corpus.max_duration_s)
    return EmbedderSettings(
        teacher=_for_workers(run.config.teacher, share),
        root=run.corpus_root,
        options=run.config.storage.options,
        batch_seconds=auto if wanted == "auto" else wanted,
        decode_threads=run.config.extract.decode_threads,
        compute_threads=max(1, int(share.cpus)),
    )


def _for_workers(teacher: TeacherConfig, share: Share) -> TeacherConfig:
    if teacher.device == "auto" and not share.gpus:
        # Ray does not hide a node's GPUs from a worker that asked for none.
        teacher = teacher.model_copy(update={"device": "cpu"})
    if Path(teacher.path).is_dir():
        # Workers have another working directory, where a relative path would be taken for a name on the hub.
        teacher = teacher.model_copy(update={"path": str(Path(teacher.path).resolve())})
    return teacher


def _gpus_each(run: Run, have: Resources) -> float:
    wanted = run.config.extract.gpus_per_actor
    if wanted == "auto":
        return 1.0 if have.gpus else 0.0
    return wanted
