"""The table of figures that a run ends with."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

_LABELS = {"baseline": "WER without MVQ-KD", "mvqkd": "WER with MVQ-KD"}


def print_report(report: dict[str, Any]) -> None:
    """What a newcomer wants to know, as a table on standard output."""
    rows = [*_corpus_rows(report), *_size_rows(report["extract"]["table"])]
    for name, student in report.get("students", {}).items():
        if "score" in student:
            rows.append((_LABELS.get(name, f"WER of {name}"), _score(student["score"])))
            if student["score"].get("delay"):
                rows.append((f"Delay of {name}", _delay(student["score"]["delay"])))
    rows += _reduction_rows(report)
    rows.append(("Table", report["extract"]["table_url"]))
    shown = Table(show_header=False, title="MVQ-KD", title_justify="left")
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for label, value in rows:
        shown.add_row(label, value)
    Console(highlight=False).print(shown)


def _corpus_rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    plan, fit, extract = report["plan"], report["fit"], report["extract"]
    table, speed = extract["table"], extract["speed"]
    contract = table["contract"]
    yield "Corpus", f"{plan['train_hours']:.2f} h train, {plan.get('test_hours', 0):.2f} h test"
    teacher = f"{contract['teacher_name']}, layer {contract['layer']}, {contract['frame_rate_hz']:g} frames/s"
    yield "Teacher", teacher
    if contract.get("payload") == "embeddings":
        yield "Quantizer", f"none: {contract['dim']} numbers a frame, as float16"
    else:
        yield (
            "Quantizer",
            f"{fit['num_codebooks']} codebooks of {fit['codebook_size']}, {fit['bits_used_per_code']:.2f} bits used "
            f"a code, RRL {fit['valid_rrl']:.3f} on {fit['valid_frames']} frames of other {fit['held_out']}",
        )
    yield "Index table", f"{table['rows']} utterances, {table['hours']:.2f} h, {table['shards']} shards"
    refused = plan["train_refused"]
    yield (
        "Left out",
        f"{refused} utterances refused by the plan, {extract['utterances_left_out']} by the workers, "
        f"{extract['shards_failed']} shards",
    )
    if speed:
        yield (
            "Extraction",
            f"real-time factor {speed['real_time_factor']:.4f} ({speed['times_real_time']:.0f} times real time), "
            f"the last {speed['extracted_hours']:.2f} h",
        )


def _size_rows(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if table["bytes_per_hour"] is None:
        return  # an empty table
    of, kind = ("index", "bytes_per_index") if table["bytes_per_index"] else ("frame", "bytes_per_frame")
    size = f"{show_bytes(table['bytes_per_hour'])} ({table[kind]:.3f} bytes per {of}, all columns in)"
    yield "Bytes per hour", size
    for dtype in ("float32", "float16"):
        embeddings, times = table[f"{dtype}_bytes_per_hour"], table[f"{dtype}_times_as_much"]
        yield (
            f"  {dtype} embeddings",
            f"{show_bytes(embeddings)}, {times:.{0 if times > 9 else 1}f} times as much",
        )


def _reduction_rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every student against `baseline`, or the first one: the reduction of a run with two, and its intervals."""
    students = report.get("students", {})
    first = "baseline" if "baseline" in students else next(iter(students), None)
    reduction = report.get("relative_wer_reduction")
    if reduction is not None:
        yield "Relative reduction", f"{reduction:.1%}{show_interval(_pair(students, 'mvqkd', 'baseline'))}"
    for name in students:
        figures = _pair(students, name, first)
        if figures is None or figures["relative_reduction"] is None:
            continue
        if reduction is None or name != "mvqkd" or first != "baseline":
            yield f"{name} against {first}", f"{figures['relative_reduction']:.1%}{show_interval(figures)}"


def _pair(students: dict[str, Any], name: str, other: str | None) -> dict[str, Any] | None:
    """One student against another, from the report of the one that was decoded last."""
    against = students[name].get("score", {}).get("against", {})
    if other in against:
        direct: dict[str, Any] = against[other]
        return direct
    back = students.get(other or "", {}).get("score", {}).get("against", {}).get(name)
    if back is None:
        return None
    return {
        **back,
        "relative_reduction": _turned(back["relative_reduction"]),
        "relative_low": _turned(back["relative_high"]),
        "relative_high": _turned(back["relative_low"]),
        "better": None if back["better"] is None else 1 - back["better"],
    }


def _turned(reduction: float | None) -> float | None:
    """From 1 - a/b to 1 - b/a."""
    return None if reduction is None or reduction >= 1 else 1 - 1 / (1 - reduction)


def show_interval(figures: dict[str, Any] | None) -> str:
    """The interval of a relative reduction, and how sure the difference is; nothing where they are not known."""
    if figures is None or figures["relative_low"] is None or figures["relative_high"] is None:
        return ""
    return (
        f" (95% interval {figures['relative_low']:.1%} to {figures['relative_high']:.1%}; better in "
        f"{figures['better']:.1%} of draws of {figures['units']} {figures['over']})"
    )


def _score(score: dict[str, Any]) -> str:
    """Of which utterances it is stands beside it, since those left out are not in it."""
    of = f"{score['utterances']} utterances" + (f", {score['hours']:.2f} h" if "hours" in score else "")
    left_out = f"; {score['left_out']} left out" if score["left_out"] else ""
    interval = ""
    if score.get("wer_low") is not None:  # reports from before there were intervals have none
        interval = f" (95% interval {score['wer_low']:.2%} to {score['wer_high']:.2%})"
    kinds = ""
    if "insertions" in score:
        kinds = ", ".join(f"{score[kind]} {kind}" for kind in ("insertions", "deletions", "substitutions"))
        kinds = f"; {kinds}"
    return f"{score['wer']:.2%}{interval} of {score['words']} words{kinds} (CER {score['cer']:.2%}), {of}{left_out}"


def _delay(delay: dict[str, Any]) -> str:
    """Of words where the test part has their times, else the wait for later audio."""
    latency = f"; {delay['latency_s']:.2f} s by its design"
    measured, since = delay["words"], "words, after their end"
    if measured is None:
        measured, since = delay["waits"], "units, after their frame"
    if measured is None:
        return f"nothing was heard in {delay['utterances']} utterances{latency}"
    return (
        f"{measured['median_s']:.2f} s in the middle, {measured['p90_s']:.2f} s for nine of ten "
        f"({measured['units']} {since}, in chunks of {delay['chunk_s']:g} s){latency}"
    )


def show_times(times: float) -> str:
    """How many times as much."""
    return f"{times:,.{0 if times > 9 else 1}f}"


def show_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError
