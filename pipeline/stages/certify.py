"""The certify stage: how much of the codes depends on how utterances are batched, written beside the table."""

import random
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from mvqkd.pipeline.cluster.pool import Note, Outcome, Watch, open_pool
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import bar, say
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.artifacts import write_json
from mvqkd.storage.errors import ArtifactError
from mvqkd.workers.quantizer_record import load_record

SAMPLE_HOURS = 0.25
SAMPLE_SHARDS = 32
SEED = 1
CERTIFICATE = "certificate.json"


def certify_stage(run: Run, hours: float = SAMPLE_HOURS) -> dict[str, Any]:
    """Encode a sample of the training part alone, batched, in other shapes and, if the run's is another, in float32.

    Raises:
        StageError: there is no quantizer, nothing could be encoded, or the table is to hold embeddings.
    """
    if run.config.table.target != "codes":
        raise StageError(
            f"table.target is {run.config.table.target}, and certify counts codes that change; it can be run with "
            "--set table.target=codes and a quantizer of the same teacher, and also says how far embeddings change then"
        )
    plan = need_plan(run, "train")
    try:
        record = load_record(run.quantizer)
    except ArtifactError as error:
        raise StageError(f"{error}; `mvqkd fit` makes it") from error

    from mvqkd.pipeline.stages.sizing import embedder_settings, extract_share
    from mvqkd.workers.certify import LIMIT, CertifySettings
    from mvqkd.workers.sample import draw_cuts

    wanted = min(hours, plan.hours * 1.01)
    cuts = draw_cuts(plan.location, plan.shards, hours=wanted, seed=SEED, max_shards=SAMPLE_SHARDS)
    random.Random(SEED).shuffle(cuts)
    with open_pool(run.config.cluster, run=run.name) as pool, ExitStack() as bars:
        share = extract_share(run, pool.resources)
        settings = CertifySettings(
            embedder=embedder_settings(run, share, record),
            quantizer=run.quantizer,
            search=run.config.extract.search,
        )
        show = bars.enter_context(bar("certify", total=1, unit="ways"))

        def on_notes(notes: list[Note]) -> None:
            for note in notes:
                show.update(note["done"], total=note["total"])

        watch = Watch(on_notes=on_notes, on_retry=_say_again)
        (outcome,) = pool.run([cuts], settings, share=replace(share, workers=1), watch=watch, max_attempts=2)
    if outcome.failed:
        raise StageError(f"nothing could be encoded: {outcome.errors[-1]}")
    summary = {**asdict(outcome.result), "quantizer_id": record.id, "limit": LIMIT}
    write_json(run.table, CERTIFICATE, summary)
    run.reports.write("certify", summary)
    if not summary["certified"]:
        say(
            f"WARNING: {summary['changes']['batched']['codes']:.2%} of the codes depend on what else is in the batch, "
            f"more than {LIMIT:.1%}; with teacher.dtype float32 fewer do, and docs/teachers.md says why"
        )
    return summary


def show_certificate(summary: dict[str, Any]) -> None:
    """A table for people."""
    print(
        f"{summary['utterances']} utterances, {summary['frames']} frames; {summary['dtype']}, {summary['search']} "
        f"search, {summary['device']}; RRL {summary['rrl']:.4f}"
    )
    columns = f"{'codes':>10s}{'frames':>10s}{'RRL':>11s}{'embeddings':>12s}{'error there':>13s}"
    print(f"{'against each one alone':24s}{columns}")
    for name, change in summary["changes"].items():
        shares = f"{change['codes']:10.4%}{change['frames']:10.4%}{change['rrl']:+11.6f}"
        print(f"{name:24s}{shares}{change['embeddings']:12.2e}{change['error_of_changed']:+13.5f}")
    print("certified" if summary["certified"] else f"NOT certified: batched is above {summary['limit']:.1%}")


def _say_again(failed: Outcome) -> None:
    say(f"encoding failed and is tried again: {failed.errors[-1]}")
