"""The decode stage: the test part, recognized by a student where the GPUs are."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from mvqkd.models.students.kinds import config_of
from mvqkd.pipeline.cluster.pool import Note, Outcome, Watch, open_pool
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import bar, say
from mvqkd.pipeline.stages.describe import differences
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.pipeline.stages.scored import against_others
from mvqkd.storage.errors import ArtifactError
from mvqkd.workers.distill.student_record import StudentRecord, verified_record
from mvqkd.workers.plan import Plan, read_refused
from mvqkd.workers.section import identity_of


def decode_stage(run: Run, name: str | None = None) -> dict[str, Any]:
    """Recognize the test part with a student; every utterance's errors go to `errors.jsonl` beside it.

    Args:
        name: of the student; by default the one that `RunConfig.default_student` names.

    Raises:
        StageError: there is no such student, it was trained with other settings than the run has now, or a shard
            of the test part could not be recognized.
    """
    from mvqkd.workers.recognize.delay import report_delays
    from mvqkd.workers.recognize.score import NotRecognized, Recognized, score

    name = name or run.config.default_student()
    plan = need_plan(run, "test")
    out = run.student(name)
    try:
        record = verified_record(out)
    except ArtifactError as error:
        raise StageError(f"{error}; `mvqkd distill` trains it") from error
    _check_settings(run, name, record)
    results: list[Recognized | NotRecognized] = [
        NotRecognized(cut_id=refused.cut_id, problem=refused.reason, duration_s=refused.duration_s)
        for refused in read_refused(plan.location)
    ]
    for outcome in _outcomes(run, name, plan):
        if outcome.failed:
            raise StageError(f"the test part could not be recognized: {outcome.errors[-1]}")
        results += outcome.result
    results.sort(key=lambda result: result.cut_id)
    text = "".join(json.dumps(result.to_dict(), ensure_ascii=False) + "\n" for result in results)
    out.replace("errors.jsonl", text.encode())
    try:
        totals = score(results)
    except ValueError as error:
        raise StageError(f"{error}: {out.full_url('errors.jsonl')}") from error
    if totals.left_out:
        say(
            f"{totals.left_out} test utterances ({totals.left_out_hours:.2f} h) are not in the error rate, see "
            f"{out.full_url('errors.jsonl')}"
        )
    searched = {"search"} if run.config.decode.search == "greedy" else {"search", "beam"}
    heard = [result for result in results if isinstance(result, Recognized)]
    delays = report_delays(
        (result.delays for result in heard if result.delays is not None),
        chunk_s=run.config.decode.delay_chunk_s,
    )
    summary = {
        **asdict(totals),
        **run.config.decode.model_dump(include=searched),
        **({} if delays is None else {"delay": asdict(delays)}),
        "errors": out.full_url("errors.jsonl"),
        "digest": record.digest,
        "against": against_others(run, name, heard),
    }
    run.reports.write("decode", summary, name)
    return summary


def _check_settings(run: Run, name: str, record: StudentRecord) -> None:
    """Else the student's errors would be reported as those of settings that it never saw."""
    student, distill = run.config.student_settings(name)
    changed = differences(
        # Settings that did not exist when it was trained had their defaults.
        _flat(asdict(config_of(record.student)), identity_of(type(distill)(**record.distill))),
        _flat(asdict(student), identity_of(distill)),
    )
    if changed:
        raise StageError(
            f"{run.student(name).url} was trained with {changed}; `mvqkd distill` trains it anew"
        )


def _flat(student: dict[str, Any], distill: dict[str, Any]) -> dict[str, Any]:
    return {f"distill.{key}": value for key, value in distill.items()} | {
        f"student.{key}": value for key, value in student.items()
    }


def _outcomes(run: Run, name: str, plan: Plan) -> Sequence[Outcome]:
    from mvqkd.pipeline.stages.sizing import decode_share
    from mvqkd.workers.recognize.recognizer import RecognizeSettings

    done: dict[int, int] = {}  # utterances of each shard
    began = time.monotonic()
    with (
        open_pool(run.config.cluster, run=run.name) as pool,
        bar(f"decode {name}", total=plan.num_cuts, unit="utterances") as show,
    ):
        share = decode_share(run, pool.resources)
        share = replace(share, workers=min(share.workers, len(plan.shards)))
        settings = RecognizeSettings(
            student=run.student(name),
            plan=plan.location,
            root=run.corpus_root,
            options=run.config.storage.options,
            batch_seconds=run.config.student_settings(name)[1].batch_seconds,
            decode=run.config.decode,
            delay_utterances=math.ceil(run.config.decode.delay_utterances / max(1, len(plan.shards))),
            threads=max(1, int(share.cpus)),
            use_gpu=share.gpus > 0,
        )

        def on_notes(notes: list[Note]) -> None:
            done.update({note["position"]: note["done"] for note in notes})
            total = sum(done.values())
            show.update(total, utterances_per_s=total / max(1e-9, time.monotonic() - began))

        watch = Watch(
            on_notes=on_notes,
            on_retry=lambda failed: say(f"decoding failed and is tried again: {failed.errors[-1]}"),
        )
        return list(pool.run(plan.shards, settings, share=share, watch=watch))
