"""The calibrate stage: the preflight of an extraction, by one worker on a sample of this corpus."""

import random
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from mvqkd.pipeline.cluster.pool import Note, Outcome, Watch, open_pool
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import bar, say
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.workers.quantizer_record import NAME, QuantizerRecord, load_record

SECONDS = 60.0
SAMPLE_HOURS = 2.0
SAMPLE_SHARDS = 32
SEED = 1


def calibrate_stage(run: Run, seconds: float = SECONDS) -> dict[str, Any]:
    """Measure on a sample of the training part; warn where this is not audio that teacher and quantizer know.

    Args:
        run: its corpus, its teacher, and its quantizer if it has one.
        seconds: to measure the speed for; loading and warming up come on top.

    Raises:
        StageError: nothing could be measured.
    """
    plan = need_plan(run, "train")
    of_codes = run.config.table.target == "codes"
    record = load_record(run.quantizer) if of_codes and run.quantizer.exists(f"{NAME}.json") else None

    from mvqkd.pipeline.stages.sizing import embedder_settings, extract_share
    from mvqkd.workers.calibrate import CalibrateSettings
    from mvqkd.workers.domain import warnings_of
    from mvqkd.workers.sample import draw_cuts

    hours = min(SAMPLE_HOURS, plan.hours * 1.01)
    cuts = draw_cuts(plan.location, plan.shards, hours=hours, seed=SEED, max_shards=SAMPLE_SHARDS)
    if not cuts:
        raise StageError(f"{plan.location.url}: no utterance came into the sample; the plan has too few")
    # By id they would come speaker by speaker.
    random.Random(SEED).shuffle(cuts)
    with open_pool(run.config.cluster, run=run.name) as pool, ExitStack() as bars:
        share = extract_share(run, pool.resources)
        settings = CalibrateSettings(
            embedder=embedder_settings(run, share, record),
            quantizer=None if record is None else run.quantizer,
            seconds=seconds,
            search=run.config.extract.search,
        )
        show = bars.enter_context(bar("calibrate", total=seconds, unit="s"))

        def on_notes(notes: list[Note]) -> None:
            for note in notes:
                show.update(note["done"], total=note["total"])

        watch = Watch(on_notes=on_notes, on_retry=_say_again)
        (outcome,) = pool.run([cuts], settings, share=replace(share, workers=1), watch=watch, max_attempts=2)
    if outcome.failed:
        raise StageError(f"nothing could be measured: {outcome.errors[-1]}")
    found = outcome.result
    summary = {
        **asdict(found),
        "workers": share.workers,
        "cpus_per_worker": share.cpus,
        "gpus_per_worker": share.gpus,
        "fitted": _fitted(record),
        "warnings": warnings_of(found, record),
        "teacher": run.config.teacher.model_dump(mode="json"),  # for which the figures hold
    }
    run.reports.write("calibrate", summary)
    for warning in summary["warnings"]:
        say(f"WARNING: {warning}")
    return summary


def _fitted(record: QuantizerRecord | None) -> dict[str, Any] | None:
    """The same figures of the audio that the quantizer was fitted on."""
    if record is None:
        return None
    return {
        "rrl": record.valid_rrl,
        "usage_entropy_bits": record.usage_entropy_bits,
        "loudness": record.training_data.loudness,
    }


def _say_again(failed: Outcome) -> None:
    say(f"measuring failed and is tried again: {failed.errors[-1]}")
