"""The tables that `mvqkd plan` and `mvqkd calibrate` end with."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from mvqkd.pipeline.show.run_table import show_bytes


def print_plan(summary: dict[str, Any]) -> None:
    """What will be extracted, and what it takes."""
    _print("Plan", _plan_rows(summary))


def print_calibration(summary: dict[str, Any]) -> None:
    """What was measured, beside what the quantizer was fitted on."""
    _print("Calibration", _calibration_rows(summary))
    fitted = summary["fitted"]
    if fitted is not None and fitted["loudness"] is None:
        print(
            "The quantizer's record has no loudness, since it was fitted before that was measured; nothing is compared."
        )


def _plan_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part in ("train", "test"):
        if f"{part}_cuts" in summary:
            yield (
                f"Corpus, {part}",
                f"{summary[f'{part}_cuts']:,} utterances, {summary[f'{part}_hours']:,.2f} h; "
                f"{summary[f'{part}_refused']:,} refused, {summary[f'{part}_text_dropped']:,} lost their text",
            )
    yield "Shards", f"{summary['shards']:,} of up to {summary['shard_hours']:g} h"
    if summary["speeds"] != [1.0]:
        speeds = ", ".join(f"{speed:g}" for speed in summary["speeds"])
        yield "Speeds", f"{speeds}; each copy is an utterance of the training part"
    for name, size in {"": summary["index_bytes"], **summary.get("more_index_bytes", {})}.items():
        alone = f"{summary['target']} alone" if not name else "without its other columns"
        about = (
            "not known until the teacher can be asked"
            if size is None
            else f"about {show_bytes(size)}, {alone}"
        )
        yield f"Table {name}" if name else "Index table", about
    rate = summary["hours_per_worker_hour"]
    if rate is None:
        yield "Work", "not known: run `mvqkd calibrate`, or give extract.hours_per_worker_hour or --rate"
        return
    yield (
        "Work",
        f"{summary['worker_hours']:,.2f} worker-hours at {rate:,.4g} hours of audio an hour ({summary['rate_from']})",
    )
    if summary["wall_hours"] is not None:
        yield "Wall time", f"about {summary['wall_hours']:,.2f} h with {summary['workers']:,} workers"
    if summary["worker_memory_bytes"] is not None:
        yield "Memory of a worker", _memory(summary["worker_memory_bytes"], summary["worker_device_bytes"])


def _calibration_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "Speed",
        f"{summary['hours_per_worker_hour']:,.4g} hours of audio per worker-hour ({summary['measured_s']:.0f} s, "
        f"{summary['measured_hours']:.2f} h of audio; warm-up {summary['warm_up_s']:.1f} s apart)",
    )
    yield (
        "Worker",
        f"{summary['device']}, {summary['cpus_per_worker']:g} CPUs, {summary['gpus_per_worker']:g} GPUs; "
        f"the cluster has room for {summary['workers']}",
    )
    yield "Memory", _memory(summary["peak_memory_bytes"], summary["peak_device_bytes"])
    yield "Sample", f"{summary['utterances']} utterances, {summary['left_out']} left out"
    fitted, quality = summary["fitted"], summary["quality"]
    if quality is None or fitted is None:
        yield "Quantizer", "none yet; `mvqkd fit` makes it, then calibrate again"
    else:
        yield "Quantizer's share", f"{summary['quantizer_share']:.1%} of the time"
        yield (
            "RRL",
            f"{quality['rrl']:.4f} on {quality['frames']:,} frames; {fitted['rrl']:.4f} where it was fitted",
        )
        bits, then = _mean(quality["usage_entropy_bits"]), _mean(fitted["usage_entropy_bits"])
        used = quality["used_codes"]
        yield (
            "Bits used a code",
            f"{bits:.2f}; {then:.2f} where it was fitted; {min(used)} to {max(used)} entries used",
        )
    if summary["loudness"] is not None:
        yield from _loudness_rows(summary["loudness"], None if fitted is None else fitted["loudness"])
    if summary["teacher_wer"] is not None:
        yield (
            "Teacher's own WER",
            f"{summary['teacher_wer']:.1%} on {summary['teacher_wer_utterances']} utterances",
        )


def _loudness_rows(found: dict[str, float], fitted: dict[str, float] | None) -> Iterator[tuple[str, str]]:
    for label, key, show in (
        ("Loudness", "rms_dbfs", "{:.1f} dBFS"),
        ("Silence", "silence_share", "{:.1%}"),
        ("Upper half of the band", "upper_half_db", "{:.1f} dB"),
    ):
        then = "" if fitted is None else f"; {show.format(fitted[key])} where it was fitted"
        yield label, show.format(found[key]) + then


def _memory(process: int, device: int | None) -> str:
    return show_bytes(process) + ("" if device is None else f", {show_bytes(device)} of the GPU's")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _print(title: str, rows: Iterable[tuple[str, str]]) -> None:
    shown = Table(show_header=False, title=title, title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for label, value in rows:
        shown.add_row(label, value)
    Console(highlight=False).print(shown)
