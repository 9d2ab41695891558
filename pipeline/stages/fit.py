"""The fit stage: the quantizer, fitted to a sample of the corpus by one worker."""

from contextlib import ExitStack
from typing import Any

from mvqkd.pipeline.cluster.pool import Note, Outcome, Watch, open_pool
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import Bar, bar, say
from mvqkd.pipeline.stages.describe import describe_teacher, differences, teacher_settings
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.shared_place import require_seen
from mvqkd.workers.quantizer_record import NAME, QuantizerRecord, load_record


def fit_stage(run: Run) -> dict[str, Any]:
    """Fit the quantizer of each table, or return the figures of those that are there; further ones under `tables`.

    A table of embeddings has no quantizer: its teacher is looked at.

    Raises:
        StageError: one that is there was fitted with other settings, or a fit failed.
    """
    summary = _fit(run)
    more = {str(each.table_name): _fit(each) for each in run.more_tables()}
    return {**summary, "tables": more} if more else summary


def _fit(run: Run) -> dict[str, Any]:
    if run.config.table.target == "embeddings":
        return describe_teacher(run)
    plan = need_plan(run, "train")
    if run.quantizer.exists(f"{NAME}.json"):
        record = load_record(run.quantizer)
        _check_settings(run, record)
        return _report(run, record)

    from mvqkd.pipeline.stages.sizing import embedder_settings, fit_share
    from mvqkd.workers.fit import FitSettings
    from mvqkd.workers.sample import draw_sample

    config = run.config.quantizer
    sample = draw_sample(
        run.plan("train"),
        plan.shards,
        hours=min(config.sample_hours, plan.hours * 1.01),
        valid_fraction=config.valid_fraction,
        seed=config.seed,
    )
    with open_pool(run.config.cluster, run=run.name) as pool, ExitStack() as bars:
        share = fit_share(run, pool.resources)
        settings = FitSettings(
            embedder=embedder_settings(run, share),
            location=run.quantizer,
            config=config.fit_config(),
            max_frames=config.max_frames,
            settings=_settings(run),
        )
        shown = _Bars(bars, "steps" if config.method == "paper" else "rounds")
        watch = Watch(on_notes=shown.update, on_retry=_say_again)
        (outcome,) = pool.run([sample], settings, share=share, watch=watch)
    if outcome.failed:
        raise StageError(f"the quantizer could not be fitted: {outcome.errors[-1]}")
    require_seen(run.quantizer, f"{NAME}.json")
    return _report(run, outcome.result)


def _settings(run: Run) -> dict[str, Any]:
    """What makes the quantizer. Which checkpoint it is of, its fingerprint says when the teacher is loaded."""
    return {
        "teacher": teacher_settings(run),
        "quantizer": run.config.quantizer.model_dump(),
        "corpus": run.config.corpus.model_dump(include={"format", "root", "train"}),
    }


def _check_settings(run: Run, record: QuantizerRecord) -> None:
    wanted = _settings(run)
    for section in ("teacher", "quantizer"):
        if changed := differences(record.settings[section], wanted[section]):
            raise StageError(
                f"{run.quantizer.url}: this quantizer was fitted with other settings of {section}: {changed}; set "
                "them back, or use another storage.root"
            )
    if changed := differences(record.settings["corpus"], wanted["corpus"]):
        say(
            f"the quantizer in {run.quantizer.url} was fitted on another corpus ({changed}) and is used as it is"
        )


class _Bars:
    """A bar for embedding the sample, then one for the fit."""

    def __init__(self, open_bars: ExitStack, unit: str) -> None:
        self._open, self._unit, self._shown = open_bars, unit, dict[str, Bar]()

    def update(self, notes: list[Note]) -> None:
        for note in notes:
            figures = {key: value for key, value in note.items() if key != "worker"}
            stage, done, total = figures.pop("stage"), figures.pop("done"), figures.pop("total")
            if stage not in self._shown:
                self._open.close()
                unit = "utterances" if stage == "embed" else self._unit
                self._shown[stage] = self._open.enter_context(bar(f"fit: {stage}", total=total, unit=unit))
            self._shown[stage].update(done, total=total, **figures)


def _say_again(failed: Outcome) -> None:
    say(f"the fit failed and is tried again: {failed.errors[-1]}")


def _report(run: Run, record: QuantizerRecord) -> dict[str, Any]:
    bits, data = record.usage_entropy_bits, record.training_data
    summary = {
        "id": record.id,
        "dim": record.dim,
        "num_codebooks": record.num_codebooks,
        "codebook_size": record.codebook_size,
        "valid_rrl": record.valid_rrl,
        "usage_entropy_bits": bits,
        "steps": record.steps,
        "seconds": record.seconds,
        "bits_used_per_code": sum(bits) / len(bits),
        "train_frames": data.frames,
        "valid_frames": data.valid_frames,
        "held_out": data.held_out,
    }
    run.reports.write("fit", {**summary, "teacher": record.teacher, "settings": record.settings})
    return summary
