"""The plot of a run: what each system reaches with its bytes and with its time."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quantizer.files import written_aside
from benchmarks.quantizer.frames import GAUSSIAN, shannon_rrl
from benchmarks.quantizer.systems import SYSTEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "os^DvP*X"


def draw_plot(report: dict[str, Any], path: Path) -> bool:
    """Write the plot, a row of two panels for each dataset; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    datasets = [d for d in report["datasets"] if any(r["dataset"] == d["name"] for r in report["rows"])]
    if not datasets:
        return False
    figure = Figure(figsize=(12, 4.4 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False)
    for (by_bytes, by_seconds), dataset in zip(grid, datasets, strict=True):
        # A second way of encoding has no fit of its own.
        rows = [row for row in report["rows"] if row["dataset"] == dataset["name"] and "fit_s" in row]
        _draw_by_bytes(by_bytes, rows, dataset)
        _draw_by_seconds(by_seconds, rows, dataset)
    with written_aside(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return True


def _draw_by_bytes(axes: "Axes", rows: list[dict[str, Any]], dataset: dict[str, Any]) -> None:
    for name in _systems_of(rows):
        points = sorted((row["bytes"], row["rrl"]) for row in rows if row["system"] == name)
        axes.plot(*zip(*points, strict=True), **_look(name), marker="o", markersize=4, label=name)
    sizes = sorted({row["bytes"] for row in rows})
    if dataset["name"] == GAUSSIAN:
        bound = [shannon_rrl(size, dataset["dim"]) for size in sizes]
        axes.plot(sizes, bound, color="black", linestyle=":", label="Shannon's bound")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(title=f"{dataset['name']}: RRL of test frames", xlabel="bytes per frame", ylabel="RRL")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_by_seconds(axes: "Axes", rows: list[dict[str, Any]], dataset: dict[str, Any]) -> None:
    sizes = sorted({row["bytes"] for row in rows})
    markers = {size: _MARKERS[i % len(_MARKERS)] for i, size in enumerate(sizes)}
    for row in rows:
        look = _look(row["system"])
        axes.plot(row["fit_s"], row["rrl"], **look, marker=markers[row["bytes"]], markersize=7)
        if row["system"].startswith("ours") and len(row["history"]) > 1:
            axes.plot(*zip(*row["history"], strict=True), **look, linewidth=1, alpha=0.6)
    for size, marker in markers.items():
        axes.plot([], [], color="grey", marker=marker, linestyle="none", label=f"{size} bytes")
    axes.plot([], [], color="grey", linewidth=1, label="ours while fitted\n(held-out train frames)")
    axes.set_xscale("log")
    axes.set(title=f"{dataset['name']}: RRL by fitting time", xlabel="seconds of fitting", ylabel="RRL")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _systems_of(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in SYSTEMS if any(row["system"] == name for row in rows)]


def _look(name: str) -> dict[str, Any]:
    """The same colour in all panels and all runs; ours solid, others dashed."""
    return {
        "color": f"C{list(SYSTEMS).index(name)}",
        "linestyle": "-" if name.startswith("ours") else "--",
    }
