"""The table and the plain figures of a run."""

from collections.abc import Sequence
from typing import Any

from benchmarks.quantizer.frames import GAUSSIAN, shannon_rrl
from benchmarks.quantizer.same_codebooks import IN_TENSORS

PEER = "multi_quantization"
RESIDUAL = "faiss-rq"
_NARROWEST = 200
_COLUMNS = {
    "bytes": "bytes",
    "system": "system",
    "rrl": "RRL",
    "bound": "bound",
    "rrl_vs_peer": "RRL/mq",
    "rrl_vs_rq": "RRL/RQ",
    "linear_nats": "linear nats",
    "hidden_nats": "hidden nats",
    "usage_entropy_bits": "entropy bits",
    "fit_s": "fit s",
    "encode_fps": "frames/s",
    "speed_vs_peer": "speed/mq",
    "speed_vs_rq": "speed/RQ",
    "peak_memory_mb": "peak MB",
}
_DIGITS = {
    "rrl": 4,
    "bound": 4,
    "fit_s": 1,
    "encode_fps": 0,
    "peak_memory_mb": 0,
    "bytes": 0,
    "speed_vs_peer": 1,
    "speed_vs_rq": 2,
}


def with_ratios(rows: list[dict[str, Any]], dims: dict[str, int]) -> list[dict[str, Any]]:
    """The rows and their ratios to `multi_quantization` and FAISS RQ at equal bytes, and Shannon's bound.

    An RRL ratio below 1 and a speed ratio above 1 are better. RRLs are compared with `multi_quantization` on
    the drawn test frames, for it may have been judged on those alone.
    """
    rows = [part for row in rows for part in (row, *_fast_rows(row))]
    known = {(row["dataset"], row["bytes"], row["system"]): row for row in rows}
    full = []
    for row in rows:
        more: dict[str, float] = {}
        if row["dataset"] == GAUSSIAN:
            more["bound"] = shannon_rrl(row["bytes"], dims[GAUSSIAN])
        for short, other, rrl in (("peer", PEER, "rrl_drawn"), ("rq", RESIDUAL, "rrl")):
            beside = known.get((row["dataset"], row["bytes"], other))
            if beside is not None:
                more[f"rrl_vs_{short}"] = row[rrl] / beside[rrl]
                more[f"speed_vs_{short}"] = row["encode_fps"] / beside["encode_fps"]
        full.append(row | more)
    return full


def _fast_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row of its own for the quicker way of encoding, where a system has one."""
    if "fast" not in row:
        return []
    kept = ("dataset", "bytes", "judged_frames")
    name = f"{row['system']}, fast encode"
    return [{key: row[key] for key in kept} | row["fast"] | {"system": name, "details": {}}]


def show_tables(report: dict[str, Any]) -> None:
    """Print a table for each dataset, and what stands beside them."""
    for dataset in report["datasets"]:
        rows = [row for row in report["rows"] if row["dataset"] == dataset["name"]]
        if not rows:
            continue
        title = f"{dataset['name']}: {dataset['test_frames']} test frames of {dataset['dim']}"
        columns = [key for key in _COLUMNS if any(key in row for row in rows)]
        cells = [[_cell(key, row, dataset["test_frames"]) for key in columns] for row in rows]
        _show(title, [_COLUMNS[key] for key in columns], cells)
        if any(row["judged_frames"] < dataset["test_frames"] for row in rows):
            print("* on fewer test frames, drawn evenly; RRL/mq compares equal frames")
        for row in rows:
            if row.get("rrl_of_first"):
                first = ", ".join(f"{k}: {value:.4f}" for k, value in row["rrl_of_first"].items())
                print(f"{row['system']}, {row['bytes']} bytes: RRL of the first bytes alone: {first}")
            if "note" in row["details"]:
                print(f"{row['system']}, {row['bytes']} bytes: {row['details']['note']}")
    same = report.get("same_codebooks")
    if same is not None:
        _show_same_codebooks(same)
    for failure in report["failed"]:
        place = f"{failure['dataset']}, {failure['bytes']} bytes, {failure['system']}"
        print(f"failed: {place}: {failure['error']}")


def _show_same_codebooks(same: dict[str, Any]) -> None:
    print(
        f"\nencoding {same['frames']} test frames on the {same['num_codebooks']} codebooks of "
        f"{same['checkpoint']}, default iterations"
    )
    for name in ("ours", IN_TENSORS, PEER):
        if name in same:
            print(f"  {name}: {same[name]['encode_fps']:.0f} frames/s, RRL {same[name]['rrl']:.4f}")
    if "speed_ratio" in same:
        print(f"  ours is {same['speed_ratio']:.1f} times as fast")


def _cell(key: str, row: dict[str, Any], test_frames: int) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    mark = "*" if key == "rrl" and row["judged_frames"] < test_frames else ""
    return f"{value:.{_DIGITS.get(key, 3)}f}{mark}"


def _show(title: str, header: Sequence[str], cells: list[list[str]]) -> None:
    print()
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        _show_plain(title, header, cells)
        return
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == "system" else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    # Not cut to 80 columns where the output goes to a file.
    console = Console()
    console.width = max(console.width, _NARROWEST)
    console.print(table)


def _show_plain(title: str, header: Sequence[str], cells: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    print(title)
    for row in (header, *cells):
        padded = (
            cell.ljust(width) if name == "system" else cell.rjust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        print("  ".join(padded).rstrip())
