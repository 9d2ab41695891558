"""The plan stage: the corpus cut into shards, and what extraction will make of it."""

import math
import os
from typing import Any

from mvqkd.models.teachers.errors import TeacherUnreachableError
from mvqkd.pipeline.run_folder import Part, Run
from mvqkd.pipeline.show.progress import bar, say
from mvqkd.workers.corpus.config import AS_IT_IS
from mvqkd.workers.corpus.files import CorpusError
from mvqkd.workers.plan import Plan, existing_plan
from mvqkd.workers.planner import make_plan
from mvqkd.workers.teacher import teacher_dim, teacher_sample_rate_hz

USUAL_RATE_HZ = 16_000  # of a teacher that cannot be asked
MOST_PROCESSES = 8
TEACHER_FRAME_RATE_HZ = 50.0  # of nearly every teacher that is known; the table's contract has the exact one


def plan_stage(run: Run, rate: float | None = None) -> dict[str, Any]:
    """Plan the train and the test part from the corpus as it is now; returns what extraction will cost.

    Args:
        run: its corpus and its teacher.
        rate: hours of audio that a worker does in an hour; by default `extract.hours_per_worker_hour`, or what
            `mvqkd calibrate` found.
    """
    plan = _plan_part(run, "train")
    summary = {
        "train_cuts": plan.num_cuts,
        "train_hours": plan.hours,
        "train_refused": plan.num_refused,
        "train_text_dropped": plan.num_text_dropped,
        "shards": len(plan.shards),
        "shard_hours": run.config.extract.shard_hours,
        "speeds": list(run.config.extract.speeds),
        "target": run.config.table.target,
        "index_bytes": _payload_bytes(run, plan.hours),
    }
    if more := {str(each.table_name): _payload_bytes(each, plan.hours) for each in run.more_tables()}:
        summary["more_index_bytes"] = more
    if run.config.corpus.test is not None:
        test = _plan_part(run, "test")
        summary |= {
            "test_cuts": test.num_cuts,
            "test_hours": test.hours,
            "test_refused": test.num_refused,
            "test_text_dropped": test.num_text_dropped,
        }
    summary |= _cost(run, plan.hours, rate)
    run.reports.write("plan", summary)
    return summary


def _payload_bytes(run: Run, hours: float) -> int | None:
    """Of the codes or the embeddings of the run's table, about, before compression; None where nobody knows yet."""
    per_frame = run.config.quantizer.num_codebooks
    if run.config.table.target == "embeddings":
        try:
            per_frame = 2 * teacher_dim(run.config.teacher, options=run.config.storage.options)
        except TeacherUnreachableError:
            return None  # which has been said
    return round(hours * 3600 * TEACHER_FRAME_RATE_HZ * per_frame)


def _cost(run: Run, hours: float, rate: float | None) -> dict[str, Any]:
    """Worker-hours, wall time and memory, as far as they are known."""
    found = run.reports.read("calibrate")
    if found and found["teacher"] != run.config.teacher.model_dump(mode="json"):
        say("`mvqkd calibrate` measured another teacher, or other settings of it; run it again")
        found = {}
    config = run.config.extract
    if rate is not None:
        rate_from = "--rate"
    elif config.hours_per_worker_hour is not None:
        rate, rate_from = config.hours_per_worker_hour, "extract.hours_per_worker_hour"
    elif found:
        rate, rate_from = found["hours_per_worker_hour"], "mvqkd calibrate"
    else:
        rate_from = None
    workers = found.get("workers") if config.actors == "auto" else config.actors
    worker_hours = None if rate is None else hours / rate
    return {
        "hours_per_worker_hour": rate,
        "rate_from": rate_from,
        "worker_hours": worker_hours,
        "workers": workers,
        "wall_hours": None if worker_hours is None or workers is None else worker_hours / workers,
        "worker_memory_bytes": found.get("peak_memory_bytes"),
        "worker_device_bytes": found.get("peak_device_bytes"),
    }


def need_plan(run: Run, part: Part) -> Plan:
    """The plan of a part, made by an earlier stage or now.

    Raises:
        CorpusError: the part is not named in the run file.
        PlanError: the plan that is there is damaged.
    """
    if part == "test" and run.config.corpus.test is None:
        raise CorpusError("corpus.test is not set in the run file, so there is nothing to decode")
    existing = existing_plan(
        run.plan(part),
        shard_hours=run.config.extract.shard_hours,
        settings=run.config.corpus.plan_settings(
            part, sample_rate_hz=_teacher_rate_hz(run), speeds=_speeds(run, part)
        ),
        root=run.corpus_root,
    )
    return existing or _plan_part(run, part)


def _speeds(run: Run, part: Part) -> tuple[float, ...]:
    """What is recognized is what was said."""
    return run.config.extract.speeds if part == "train" else AS_IT_IS


def _teacher_rate_hz(run: Run) -> int:
    """The rate that the teacher takes; extraction refuses a plan that was made for another one."""
    try:
        return teacher_sample_rate_hz(run.config.teacher, options=run.config.storage.options)
    except TeacherUnreachableError as error:
        say(f"{error}; until it is there, {USUAL_RATE_HZ} Hz is taken for its rate")
        return USUAL_RATE_HZ


def _processes(run: Run) -> int:
    """That parse a manifest: more than some are faster than what they parse can be written."""
    return min(MOST_PROCESSES, run.config.cluster.num_cpus or os.cpu_count() or 1)


def _plan_part(run: Run, part: Part) -> Plan:
    from mvqkd.workers.corpus.corpus import Corpus

    config, rate_hz = run.config, _teacher_rate_hz(run)
    speeds = _speeds(run, part)
    corpus = Corpus(config.corpus, sample_rate_hz=rate_hz, options=config.storage.options, speeds=speeds)
    with bar(f"plan {part}", total=math.inf, unit="cuts") as progress:
        plan = make_plan(
            corpus.planned(part, processes=_processes(run)),
            run.plan(part),
            shard_hours=config.extract.shard_hours,
            settings=config.corpus.plan_settings(part, sample_rate_hz=rate_hz, speeds=speeds),
            root=run.corpus_root,
            reuse=False,
            progress=lambda cuts, hours: progress.update(cuts, hours=hours),
        )
    if plan.num_refused:
        where = run.plan(part).full_url("refused.jsonl")
        say(f"{plan.num_refused} utterances of {part} are left out, see {where}")
    if plan.num_text_dropped:
        where = run.plan(part).full_url("text_dropped.jsonl")
        say(f"{plan.num_text_dropped} utterances of {part} have codes but no text, see {where}")
    return plan
