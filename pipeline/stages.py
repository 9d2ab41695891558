"""The stages of a run up to the table: plan, fit, extract. Each can run alone and leaves what the next one reads."""

import math
import time
from typing import Any, Literal

import ray

from models.quantizer import FitConfig
from pipeline.actors import EmbedderSpec, ExtractActor, FitActor, remote
from pipeline.board import ProgressBoard
from pipeline.cluster import cluster, resources
from pipeline.dispatch import dispatch
from pipeline.plan import Plan, make_plan, read_plan
from pipeline.progress import bar, say
from pipeline.run import SAMPLE_RATE_HZ, Run
from storage.contract import TableContract
from storage.errors import ArtifactError
from storage.failures import Failure, read_failures, write_failures
from storage.inspect import inspect_table
from storage.table import IndexTable
from workers.corpus import Corpus, CorpusError
from workers.extract import ShardReport
from workers.fit import load_quantizer
from workers.sample import draw_sample

TEACHER_FRAME_RATE_HZ = 50.0  # of every teacher that is known; the table's contract has the exact one


class StageError(RuntimeError):
    """A stage cannot do its work; the message says what is missing and which command makes it."""


def plan_part(run: Run, part: Literal["train", "test"]) -> Plan:
    """Plan one part of the corpus, or return the plan that is there."""
    config = run.config
    corpus = Corpus(config.corpus, sample_rate_hz=SAMPLE_RATE_HZ, options=config.storage.options)
    settings: dict[str, object] = {"corpus": config.corpus.model_dump(), "part": part}
    with bar(f"plan {part}", total=math.inf, unit="cuts") as progress:
        plan = make_plan(
            corpus.cuts(part),
            run.plan(part),
            shard_hours=config.extract.shard_hours,
            settings=settings,
            progress=lambda cuts, hours: progress.update(cuts, hours=hours),
        )
    if plan.num_refused:
        say(
            f"{plan.num_refused} utterances of {part} are left out, see {run.plan(part).full_url('refused.jsonl')}"
        )
    return plan


def plan_stage(run: Run) -> dict[str, Any]:
    """Plan the train and the test part; returns what extraction will cost."""
    plan = plan_part(run, "train")
    summary = {
        "train_cuts": plan.num_cuts,
        "train_hours": plan.hours,
        "train_refused": plan.num_refused,
        "shards": len(plan.shards),
        "shard_hours": run.config.extract.shard_hours,
        "index_bytes": round(plan.hours * 3600 * TEACHER_FRAME_RATE_HZ * run.config.quantizer.num_codebooks),
    }
    if run.config.corpus.test is not None:
        test = plan_part(run, "test")
        summary |= {"test_cuts": test.num_cuts, "test_hours": test.hours, "test_refused": test.num_refused}
    run.add_to_report("plan", summary)
    return summary


def need_plan(run: Run, part: Literal["train", "test"]) -> Plan:
    """The plan of a part, made by an earlier stage or now."""
    if part == "test" and run.config.corpus.test is None:
        raise CorpusError("corpus.test is not set in the run file, so there is nothing to decode")
    return plan_part(run, part)


def fit_stage(run: Run) -> dict[str, Any]:
    """Fit the quantizer, or return the figures of the one that is there."""
    config = run.config.quantizer
    plan = need_plan(run, "train")
    settings = {
        "teacher": run.config.teacher.model_dump(),
        "quantizer": config.model_dump(),
        "plan": plan.settings,
    }
    try:
        metadata = load_quantizer(run.quantizer)[1]
    except ArtifactError:
        metadata = None
    stored = run.read_report().get("fit", {})
    if metadata is not None:
        if stored.get("settings") not in (None, settings):
            raise StageError(
                f"{run.quantizer.url}: this quantizer was fitted with other settings of teacher, quantizer or corpus; "
                "use another storage.root, or delete the quantizer and the table"
            )
        return _add_fit(run, metadata, settings)
    sample = draw_sample(
        run.plan("train"),
        plan.shards,
        hours=min(config.sample_hours, plan.hours * 1.01),
        valid_fraction=config.valid_fraction,
        seed=config.seed,
    )
    fit_config = FitConfig(
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        method=config.method,
        batch_size=config.batch_size,
        phase_one_steps=config.phase_one_steps,
        phase_two_steps=config.phase_two_steps,
        lr=config.lr,
        seed=config.seed,
        valid_every=max(1, (config.phase_one_steps + config.phase_two_steps) // 20),
        state_every=max(1, (config.phase_one_steps + config.phase_two_steps) // 20),
    )
    with cluster(run.config.cluster):
        cpus, gpus = resources()
        board = ray.remote(num_cpus=0)(ProgressBoard).remote()
        threads = min(cpus, 8)
        actor = remote(FitActor, cpus=threads, gpus=_gpus_per_actor(run, gpus))
        spec = _embedder_spec(run, compute_threads=threads)
        arguments = {
            "location": run.quantizer,
            "config": fit_config,
            "max_frames": config.max_frames,
            "board": board,
        }
        with bar("fit", total=1.0, unit="") as progress:

            def show(_: list[Any]) -> None:
                note = ray.get(board.get.remote()).get("fit")
                if note is not None:
                    figures = {key: value for key, value in note.items() if key not in ("done", "total")}
                    progress.update(note["done"] / note["total"], **figures)

            outcomes = dispatch([sample], lambda: actor.remote(spec, **arguments), pool=1, on_poll=show)
            outcome = next(iter(outcomes))
    if outcome.failed:
        raise StageError(f"the quantizer could not be fitted: {outcome.errors[-1]}")
    return _add_fit(run, outcome.result, settings)


def _add_fit(run: Run, metadata: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    names = (
        "id",
        "dim",
        "num_codebooks",
        "codebook_size",
        "valid_rrl",
        "usage_entropy_bits",
        "steps",
        "seconds",
    )
    summary = {name: metadata[name] for name in names}
    data = metadata["training_data"]
    summary |= {"train_frames": data["frames"], "valid_frames": data["valid_frames"]}
    run.add_to_report("fit", {**summary, "teacher": metadata["teacher"], "settings": settings})
    return summary


def contract_of(run: Run) -> TableContract:
    """The contract of the table that the run's quantizer makes."""
    try:
        _, metadata = load_quantizer(run.quantizer)
    except ArtifactError as error:
        raise StageError(f"{error}; `mvqkd fit` makes it") from error
    teacher = metadata["teacher"]
    return TableContract(
        teacher_fingerprint=teacher["fingerprint"],
        teacher_name=teacher["name"],
        layer=teacher["layer"],
        quantizer_id=metadata["id"],
        num_codebooks=metadata["num_codebooks"],
        codebook_size=metadata["codebook_size"],
        frame_rate_hz=teacher["frame_rate_hz"],
        frame_offset_s=teacher["frame_offset_s"],
        sample_rate_hz=teacher["sample_rate_hz"],
    )


def extract_stage(run: Run) -> dict[str, Any]:
    """Extract all shards that are not in the table yet."""
    config = run.config.extract
    plan = need_plan(run, "train")
    contract = contract_of(run)
    table = IndexTable.create(run.table, contract)
    committed = table.committed()
    todo = [shard for shard in plan.shards if shard.name(contract.digest()) not in committed]
    reports: list[ShardReport] = []
    num_failed = 0
    began = time.monotonic()
    if todo:
        with cluster(run.config.cluster):
            cpus, gpus = resources()
            gpus_each = _gpus_per_actor(run, gpus)
            auto = gpus / gpus_each if gpus_each else cpus / config.cpus_per_actor
            pool = max(1, int(auto)) if config.actors == "auto" else config.actors
            actor = remote(ExtractActor, cpus=config.cpus_per_actor, gpus=gpus_each)
            spec = _embedder_spec(run, compute_threads=max(1, int(config.cpus_per_actor)))
            total_hours = sum(shard.hours for shard in todo)
            began = time.monotonic()
            with bar("extract", total=len(todo), unit="shards") as progress:
                progress.update(0, hours=0.0)
                for done, outcome in enumerate(
                    dispatch(
                        todo,
                        lambda: actor.remote(
                            spec, quantizer=run.quantizer, table=table, plan=run.plan("train")
                        ),
                        pool=min(pool, len(todo)),
                        max_attempts=config.max_attempts,
                        timeout_s=config.shard_timeout_s,
                    ),
                    start=1,
                ):
                    if outcome.failed:
                        num_failed += 1
                        _record_failed_shard(table, outcome.item.name(contract.digest()), outcome)
                    else:
                        reports.append(outcome.result)
                    hours = sum(report.hours for report in reports)
                    speed = hours * 3600 / (time.monotonic() - began)
                    progress.update(done, hours=f"{hours:.2f}/{total_hours:.2f}", times_real_time=speed)
    seconds = time.monotonic() - began
    summary = _extract_summary(run, reports, seconds=seconds, num_failed=num_failed, skipped=len(committed))
    run.add_to_report("extract", summary)
    return summary


def _record_failed_shard(table: IndexTable, name: str, outcome: Any) -> None:
    kind, _, message = outcome.errors[-1].partition(": ")
    failure = Failure(
        shard=name, cut_id=None, stage="shard", error=kind, message=message, attempts=outcome.attempts
    )
    write_failures(table.location, name, [failure])
    say(f"{name} failed {outcome.attempts} times and is set aside: {outcome.errors[-1]}")


def _extract_summary(
    run: Run, reports: list[ShardReport], *, seconds: float, num_failed: int, skipped: int
) -> dict[str, Any]:
    """Figures of the table; speed is of the time when it was last extracted, not of a run that found it done."""
    hours = sum(report.hours for report in reports)
    if hours:
        speed = {
            "extracted_hours": hours,
            "seconds": seconds,
            "real_time_factor": seconds / (hours * 3600),
            "times_real_time": hours * 3600 / seconds,
            "frames_per_second": sum(report.num_frames for report in reports) / seconds,
        }
    else:
        speed = run.read_report().get("extract", {}).get("speed", {})
    dim = load_quantizer(run.quantizer)[1]["dim"]
    failures = read_failures(run.table)
    return {
        "table_url": run.table.url,
        "shards_extracted": len(reports),
        "shards_found_done": skipped,
        "shards_failed": num_failed,
        "utterances_left_out": sum(failure.cut_id is not None for failure in failures),
        "speed": speed,
        "table": inspect_table(run.table, embedding_dim=dim).to_dict(),
    }


def _embedder_spec(run: Run, *, compute_threads: int) -> EmbedderSpec:
    return EmbedderSpec(
        teacher=run.config.teacher,
        batch_seconds=run.config.extract.batch_seconds,
        decode_threads=run.config.extract.decode_threads,
        compute_threads=compute_threads,
        options=run.config.storage.options,
    )


def _gpus_per_actor(run: Run, gpus: int) -> float:
    wanted = run.config.extract.gpus_per_actor
    if wanted == "auto":
        return 1.0 if gpus else 0.0
    return wanted


__all__ = ["StageError", "contract_of", "extract_stage", "fit_stage", "need_plan", "plan_stage", "read_plan"]
