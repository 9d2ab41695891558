"""Plots of a run: training curves of the students, RRL of the quantizer's fit."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvqkd.pipeline.run_folder import Run
from mvqkd.workers.quantizer_record import load_record


def draw_plots(run: Run) -> None:
    """Write `curves.png` into the run's folder."""
    students = run.reports.whole().get("students", {})
    of_codes = run.config.table.target == "codes"
    fit = load_record(run.quantizer).history if of_codes else []
    history = [p for p in fit if p["valid_rrl"] is not None]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    fit_axes, transducer_axes, codebook_axes = figure.subplots(1, 3)
    fit_axes.plot([p["step"] for p in history], [p["valid_rrl"] for p in history], marker=".")
    fit_axes.set(title="Quantizer", xlabel="step", ylabel="RRL on held-out frames")
    for name, student in students.items():
        points = student.get("curve", [])
        _curve(transducer_axes, points, "transducer_loss", name)
        _curve(codebook_axes, points, "codebook_loss", name)
    transducer_axes.set(title="Transducer loss", xlabel="step", ylabel="nats per utterance")
    codebook_axes.set(title="Codebook loss", xlabel="step", ylabel="nats per code")
    for axes in (fit_axes, transducer_axes, codebook_axes):
        axes.grid(alpha=0.3)
    if students:
        transducer_axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    run.root.replace("curves.png", image.getvalue())


def _curve(axes: Axes, points: list[dict[str, Any]], key: str, name: str) -> None:
    known = [p for p in points if p[key] is not None]
    if known:
        axes.plot([p["step"] for p in known], [p[key] for p in known], label=name)
