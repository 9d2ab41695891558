"""What a table of embeddings needs before it is extracted: a worker loads the teacher and says what it is."""

from collections.abc import Mapping
from typing import Any

from mvqkd.pipeline.cluster.pool import Outcome, Watch, open_pool
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import say
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.shared_place import require_seen
from mvqkd.workers.teacher_record import NAME, TeacherRecord, load_teacher_record

SAMPLE_HOURS = 0.5
SAMPLE_SHARDS = 32
SEED = 1


def describe_teacher(run: Run) -> dict[str, Any]:
    """Record the teacher of a table of embeddings, or return what is recorded.

    Raises:
        StageError: what is there is of other settings, or the teacher could not be loaded.
    """
    plan = need_plan(run, "train")
    if run.teacher.exists(NAME):
        record = load_teacher_record(run.teacher)
        check_settings(run, record)
        return _report(run, record)

    from mvqkd.pipeline.stages.sizing import embedder_settings, fit_share
    from mvqkd.workers.describe import DescribeSettings
    from mvqkd.workers.sample import draw_cuts

    hours = min(SAMPLE_HOURS, plan.hours * 1.01)
    cuts = draw_cuts(plan.location, plan.shards, hours=hours, seed=SEED, max_shards=SAMPLE_SHARDS)
    with open_pool(run.config.cluster, run=run.name) as pool:
        share = fit_share(run, pool.resources)
        settings = DescribeSettings(
            embedder=embedder_settings(run, share), location=run.teacher, settings=teacher_settings(run)
        )
        watch = Watch(on_notes=lambda _: None, on_retry=_say_again)
        (outcome,) = pool.run([cuts], settings, share=share, watch=watch)
    if outcome.failed:
        raise StageError(f"the teacher could not be looked at: {outcome.errors[-1]}")
    require_seen(run.teacher, NAME)
    return _report(run, outcome.result)


def teacher_settings(run: Run) -> dict[str, Any]:
    """What of the section `teacher` decides the embeddings. Which checkpoint it is of, its fingerprint says when the
    teacher is loaded."""
    return run.config.teacher.model_dump(include={"layer", "dtype", "whisper_window", "normalize"})


def check_settings(run: Run, record: TeacherRecord) -> None:
    """Raise `StageError` where the run's teacher has other settings than the recorded one."""
    if changed := differences(record.settings, teacher_settings(run)):
        raise StageError(
            f"{run.teacher.full_url(NAME)}: of other settings of teacher: {changed}; set them back, or use another "
            "storage.root"
        )


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What is stored and what is wanted now, for each key in which the two differ; empty where none does."""
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    return ", ".join(f"{key} {stored.get(key)!r}, now {wanted.get(key)!r}" for key in keys)


def _report(run: Run, record: TeacherRecord) -> dict[str, Any]:
    summary = {"target": "embeddings", "dim": record.dim, "teacher": record.teacher}
    run.reports.write("fit", {**summary, "settings": record.settings})
    return summary


def _say_again(failed: Outcome) -> None:
    say(f"loading the teacher failed and is tried again: {failed.errors[-1]}")
