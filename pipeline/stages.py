"""The stages of a run up to the table: plan, fit, extract. Each can run alone and leaves what the next one reads."""

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from mvqkd.models.quantizer import FitConfig
from mvqkd.pipeline.cluster.actors import EmbedderSpec, ExtractActor, FitActor, remote
from mvqkd.pipeline.cluster.connect import (
    check_fits,
    cluster,
    largest_node_cpus,
    read_board,
    resources,
    start_board,
)
from mvqkd.pipeline.cluster.dispatch import dispatch
from mvqkd.pipeline.run_folder import SAMPLE_RATE_HZ, Run
from mvqkd.pipeline.show.progress import Bar, bar, say
from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ArtifactError
from mvqkd.storage.failures import Failure, read_failures, write_failures
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import IndexTable
from mvqkd.workers.corpus.corpus import Corpus, CorpusError
from mvqkd.workers.corpus.paths import full_root
from mvqkd.workers.extract import ShardReport
from mvqkd.workers.fit import ARTIFACT as QUANTIZER
from mvqkd.workers.fit import load_quantizer
from mvqkd.workers.plan import Plan, make_plan
from mvqkd.workers.sample import draw_sample

TEACHER_FRAME_RATE_HZ = 50.0  # of every teacher that is known; the table's contract has the exact one


class StageError(RuntimeError):
    """A stage cannot do its work; the message says what is missing and which command makes it."""


def plan_part(run: Run, part: Literal["train", "test"], *, reuse: bool) -> Plan:
    """Plan one part of the corpus, or return the plan that is there if `reuse`."""
    config = run.config
    corpus = Corpus(config.corpus, sample_rate_hz=SAMPLE_RATE_HZ, options=config.storage.options)
    with bar(f"plan {part}", total=math.inf, unit="cuts") as progress:
        plan = make_plan(
            corpus.cuts(part),
            run.plan(part),
            shard_hours=config.extract.shard_hours,
            settings=corpus.settings(part),
            root=corpus.root,
            reuse=reuse,
            progress=lambda cuts, hours: progress.update(cuts, hours=hours),
        )
    if plan.num_refused:
        say(
            f"{plan.num_refused} utterances of {part} are left out, see {run.plan(part).full_url('refused.jsonl')}"
        )
    if plan.num_text_dropped:
        say(
            f"{plan.num_text_dropped} utterances of {part} have codes but no text, "
            f"see {run.plan(part).full_url('text_dropped.jsonl')}"
        )
    return plan


def plan_stage(run: Run) -> dict[str, Any]:
    """Plan the train and the test part from the corpus as it is now; returns what extraction will cost."""
    plan = plan_part(run, "train", reuse=False)
    summary = {
        "train_cuts": plan.num_cuts,
        "train_hours": plan.hours,
        "train_refused": plan.num_refused,
        "train_text_dropped": plan.num_text_dropped,
        "shards": len(plan.shards),
        "shard_hours": run.config.extract.shard_hours,
        "index_bytes": round(plan.hours * 3600 * TEACHER_FRAME_RATE_HZ * run.config.quantizer.num_codebooks),
    }
    if run.config.corpus.test is not None:
        test = plan_part(run, "test", reuse=False)
        summary |= {"test_cuts": test.num_cuts, "test_hours": test.hours, "test_refused": test.num_refused}
        summary["test_text_dropped"] = test.num_text_dropped
    run.add_to_report("plan", summary)
    return summary


def need_plan(run: Run, part: Literal["train", "test"]) -> Plan:
    """The plan of a part, made by an earlier stage or now."""
    if part == "test" and run.config.corpus.test is None:
        raise CorpusError("corpus.test is not set in the run file, so there is nothing to decode")
    return plan_part(run, part, reuse=True)


def fit_stage(run: Run) -> dict[str, Any]:
    """Fit the quantizer, or return the figures of the one that is there."""
    config = run.config.quantizer
    plan = need_plan(run, "train")
    # What makes the quantizer. Which checkpoint it is of, its fingerprint says when the teacher is loaded.
    settings = {
        "teacher": run.config.teacher.model_dump(include={"layer", "dtype", "whisper_window", "normalize"}),
        "quantizer": config.model_dump(),
        "corpus": run.config.corpus.model_dump(include={"format", "root", "train"}),
    }
    if run.quantizer.exists(f"{QUANTIZER}.json"):
        metadata = load_quantizer(run.quantizer)[1]
        for section in ("teacher", "quantizer"):
            if metadata["settings"][section] != settings[section]:
                raise StageError(
                    f"{run.quantizer.url}: this quantizer was fitted with other settings of {section}: "
                    f"{differences(metadata['settings'][section], settings[section])}; set them back, or use another "
                    "storage.root"
                )
        if metadata["settings"]["corpus"] != settings["corpus"]:
            say(
                f"the quantizer in {run.quantizer.url} was fitted on another corpus "
                f"({differences(metadata['settings']['corpus'], settings['corpus'])}) and is used as it is"
            )
        return _add_fit(run, metadata)
    sample = draw_sample(
        run.plan("train"),
        plan.shards,
        hours=min(config.sample_hours, plan.hours * 1.01),
        valid_fraction=config.valid_fraction,
        seed=config.seed,
    )
    paper = config.method == "paper"
    expected_steps = config.phase_one_steps + config.phase_two_steps if paper else 2 * config.anneal_rounds
    fit_config = FitConfig(
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        method=config.method,
        batch_size=config.batch_size,
        predictability=config.predictability,
        ordered=config.ordered,
        round_frames=config.round_frames,
        anneal_rounds=config.anneal_rounds,
        tolerance=config.tolerance,
        phase_one_steps=config.phase_one_steps,
        phase_two_steps=config.phase_two_steps,
        lr=config.lr,
        seed=config.seed,
        valid_every=max(1, expected_steps // 20),
        state_every=max(1, expected_steps // 20),
    )
    with cluster(run.config.cluster):
        _, gpus = resources()
        board = start_board()
        threads, gpus_each = min(largest_node_cpus(), 8), _gpus_per_actor(run, gpus)
        check_fits(run.config.cluster, "extract.gpus_per_actor", cpus=threads, gpus=gpus_each)
        actor = remote(FitActor, cpus=threads, gpus=gpus_each)
        spec = _embedder_spec(run, compute_threads=threads, gpus=gpus_each)
        arguments = {
            "location": run.quantizer,
            "config": fit_config,
            "max_frames": config.max_frames,
            "settings": settings,
            "board": board,
        }
        with ExitStack() as bars:
            shown: dict[str, Bar] = {}

            def show(_: list[Any]) -> None:
                note = read_board(board).get("fit")
                if note is None:
                    return
                stage, done, total = note.pop("stage"), note.pop("done"), note.pop("total")
                if stage not in shown:
                    bars.close()
                    unit = "utterances" if stage == "embed" else "steps" if paper else "rounds"
                    shown[stage] = bars.enter_context(bar(f"fit: {stage}", total=total, unit=unit))
                shown[stage].update(done, total=total, **note)

            outcomes = dispatch(
                [sample],
                lambda: actor.remote(spec, **arguments),
                pool=1,
                on_poll=show,
                on_retry=lambda failed: say(f"the fit failed and is tried again: {failed.errors[-1]}"),
            )
            outcome = next(iter(outcomes))
            if not outcome.failed:
                show([])  # the end, which lies after the last look
    if outcome.failed:
        raise StageError(f"the quantizer could not be fitted: {outcome.errors[-1]}")
    return _add_fit(run, outcome.result)


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What is stored and what is wanted now, for each key in which the two differ; empty where none does."""
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    return ", ".join(f"{key} {stored.get(key)!r}, now {wanted.get(key)!r}" for key in keys)


def _add_fit(run: Run, metadata: dict[str, Any]) -> dict[str, Any]:
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
    bits = summary["usage_entropy_bits"]
    summary |= {
        "bits_used_per_code": sum(bits) / len(bits),
        "train_frames": data["frames"],
        "valid_frames": data["valid_frames"],
        "held_out": data["held_out"],
    }
    run.add_to_report("fit", {**summary, "teacher": metadata["teacher"], "settings": metadata["settings"]})
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
    planned = {shard.name(contract.digest()): shard for shard in plan.shards}
    committed = table.committed()
    _refuse_foreign(table, sorted(committed - set(planned)))
    todo = [shard for name, shard in planned.items() if name not in committed]
    reports: list[ShardReport] = []
    num_failed = 0
    began = time.monotonic()
    if todo:
        with cluster(run.config.cluster):
            cpus, gpus = resources()
            gpus_each = _gpus_per_actor(run, gpus)
            auto = gpus / gpus_each if gpus_each else cpus / config.cpus_per_actor
            pool = max(1, int(auto)) if config.actors == "auto" else config.actors
            check_fits(
                run.config.cluster,
                "extract.cpus_per_actor, extract.gpus_per_actor",
                cpus=config.cpus_per_actor,
                gpus=gpus_each,
            )
            actor = remote(ExtractActor, cpus=config.cpus_per_actor, gpus=gpus_each)
            spec = _embedder_spec(run, compute_threads=max(1, int(config.cpus_per_actor)), gpus=gpus_each)
            board = start_board()
            arguments = {
                "quantizer": run.quantizer,
                "table": table,
                "plan": run.plan("train"),
                "max_unreadable": config.max_unreadable,
                "max_attempts": config.max_attempts,
                "board": board,
            }
            began = time.monotonic()
            with bar("extract", total=sum(shard.hours for shard in todo), unit="h") as progress:
                ended: dict[int, float] = {}  # hours of the shards that are through, by position

                def show(_: list[Any]) -> None:
                    begun = {note["position"]: note["hours"] for note in read_board(board).values()}
                    hours = sum((begun | ended).values())
                    progress.update(
                        hours,
                        shards=f"{len(ended)}/{len(todo)}",
                        times_real_time=hours * 3600 / (time.monotonic() - began),
                        left_out=sum(report.num_left_out for report in reports),
                    )

                for outcome in dispatch(
                    todo,
                    lambda: actor.remote(spec, **arguments),
                    pool=min(pool, len(todo)),
                    max_attempts=config.max_attempts,
                    timeout_s=config.shard_timeout_s,
                    on_poll=show,
                    on_retry=lambda failed: say(
                        f"{failed.item.name(contract.digest())} failed and is tried again: {failed.errors[-1]}"
                    ),
                ):
                    ended[outcome.item.position] = outcome.item.hours
                    if not outcome.failed:
                        reports.append(outcome.result)
                    elif not table.is_committed(outcome.item.name(contract.digest())):
                        num_failed += 1
                        _record_failed_shard(table, outcome.item.name(contract.digest()), outcome)
                    show([])
    seconds = time.monotonic() - began
    summary = _extract_summary(run, reports, seconds=seconds, num_failed=num_failed, skipped=len(committed))
    run.add_to_report("extract", summary)
    return summary


def _refuse_foreign(table: IndexTable, names: list[str]) -> None:
    """Shards that the plan does not know hold utterances that other shards hold too."""
    if names:
        raise StageError(
            f"{table.location.url}: {len(names)} shards are not of this plan, such as "
            f"{table.shard_path(names[0])}: the corpus or extract.shard_hours changed since; delete these "
            f"{len(names)} files, or choose another table.path"
        )


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
    table = inspect_table(run.table, embedding_dim=dim).to_dict()
    if table["bytes_per_hour"]:
        for dtype in ("float32", "float16"):
            table[f"{dtype}_times_as_much"] = table[f"{dtype}_bytes_per_hour"] / table["bytes_per_hour"]
    return {
        "table_url": run.table.url,
        "shards_extracted": len(reports),
        "shards_found_done": skipped,
        "shards_failed": num_failed,
        "utterances_left_out": sum(failure.cut_id is not None for failure in failures),
        "speed": speed,
        "table": table,
    }


def _embedder_spec(run: Run, *, compute_threads: int, gpus: float) -> EmbedderSpec:
    teacher = run.config.teacher
    if teacher.device == "auto" and not gpus:
        # Ray does not hide a node's GPUs from a worker that asked for none.
        teacher = teacher.model_copy(update={"device": "cpu"})
    if Path(teacher.path).is_dir():
        # Workers have another working directory, where a relative path would be taken for a name on the hub.
        teacher = teacher.model_copy(update={"path": str(Path(teacher.path).resolve())})
    return EmbedderSpec(
        teacher=teacher,
        batch_seconds=run.config.extract.batch_seconds,
        decode_threads=run.config.extract.decode_threads,
        compute_threads=compute_threads,
        options=run.config.storage.options,
        root=full_root(run.config.corpus.root),
    )


def _gpus_per_actor(run: Run, gpus: int) -> float:
    wanted = run.config.extract.gpus_per_actor
    if wanted == "auto":
        return 1.0 if gpus else 0.0
    return wanted
