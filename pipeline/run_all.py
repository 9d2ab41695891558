"""The whole job, and the table that it ends with."""

from typing import Any

from rich.console import Console
from rich.table import Table

from mvqkd.pipeline.cluster.connect import cluster
from mvqkd.pipeline.run_folder import REPORT, Run
from mvqkd.pipeline.show.plots import draw_plots
from mvqkd.pipeline.show.progress import say
from mvqkd.pipeline.stages import extract_stage, fit_stage, plan_stage
from mvqkd.pipeline.students import decode_stage, distill_stage, student_names


def run_all(run: Run) -> dict[str, Any]:
    """Plan, fit, extract, distill with and without codes, decode; returns the run's report."""
    plan_stage(run)
    with cluster(run.config.cluster):
        fit_stage(run)
        extract_stage(run)
        for name in student_names(run.config.distill):
            distill_stage(run, name)
            if run.config.corpus.test is not None:
                decode_stage(run, name)
    draw_plots(run)
    say(f"report and plots: {run.root.full_url(REPORT)}, {run.root.full_url('curves.png')}")
    return run.read_report()


def print_report(report: dict[str, Any]) -> None:
    """What a newcomer wants to know, as a table on standard output."""
    fit, extract = report["fit"], report["extract"]
    table, speed = extract["table"], extract["speed"]
    contract = table["contract"]
    rows = [
        (
            "Corpus",
            f"{report['plan']['train_hours']:.2f} h train, {report['plan'].get('test_hours', 0):.2f} h test",
        ),
        (
            "Teacher",
            f"{contract['teacher_name']}, layer {contract['layer']}, {contract['frame_rate_hz']:g} frames/s",
        ),
        (
            "Quantizer",
            f"{fit['num_codebooks']} codebooks of {fit['codebook_size']}, {fit['bits_used_per_code']:.2f} bits used "
            f"a code, RRL {fit['valid_rrl']:.3f} on {fit['valid_frames']} frames of other {fit['held_out']}",
        ),
        ("Index table", f"{table['rows']} utterances, {table['hours']:.2f} h, {table['shards']} shards"),
        ("Left out", f"{extract['utterances_left_out']} utterances, {extract['shards_failed']} shards"),
    ]
    if speed:
        rows.append(
            (
                "Extraction",
                f"real-time factor {speed['real_time_factor']:.4f} ({speed['times_real_time']:.0f} times real time), "
                f"the last {speed['extracted_hours']:.2f} h",
            )
        )
    size = table["bytes_per_hour"]
    rows.append(
        ("Bytes per hour", f"{_bytes(size)} ({table['bytes_per_index']:.3f} bytes per index, all columns in)")
    )
    for dtype in ("float32", "float16"):
        embeddings, times = table[f"{dtype}_bytes_per_hour"], table[f"{dtype}_times_as_much"]
        rows.append((f"  {dtype} embeddings", f"{_bytes(embeddings)}, {times:.0f} times as much"))
    for name, student in report["students"].items():
        if "score" in student:
            label = "WER without MVQ-KD" if name == "baseline" else "WER with MVQ-KD"
            score = student["score"]
            rows.append((label, f"{score['wer']:.2%} of {score['words']} words (CER {score['cer']:.2%})"))
    if report["relative_wer_reduction"] is not None:
        rows.append(("Relative reduction", f"{report['relative_wer_reduction']:.1%}"))
    rows.append(("Table", extract["table_url"]))
    shown = Table(show_header=False, title="MVQ-KD", title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for label, value in rows:
        shown.add_row(label, value)
    Console(highlight=False).print(shown)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError
