"""How fast a teacher is on a device: a well-known shape with random weights, ours beside transformers' own.

    python -m benchmarks.teacher [--shape hubert-xlarge] [--device cuda] [--json]

Needs torch and transformers alone. Audio on the host in, embeddings on the device out. Figures are medians after a
warm-up; operations are those of the utterances without their padding. What does not fit into --seconds is left out
and said. The last line is a dictionary of the main figures; with --json it has all of them.
"""

# Shape suffixes: none.

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.quantizer.run import device_name
from benchmarks.teacher.gauges import (
    PartsClock,
    measured_tflops,
    median_seconds,
    peak_gib,
    peak_tflops,
    start_memory,
)
from benchmarks.teacher.shapes import (
    RATE_HZ,
    SHAPES,
    Shape,
    operations,
    parts_of,
    random_model,
    random_teacher,
)
from benchmarks.teacher.workloads import Workload, workloads
from mvqkd.models.quantizer import SEARCHES, Coder, Quantizer
from mvqkd.models.teachers.base import DTYPES, TransformersTeacher
from mvqkd.models.teachers.products import Convolutions, convolutions_for

DEFAULT_SECONDS = 80.0


class Bench:
    """Measures one shape on one device until its time is over.

    Args:
        shape: of the teacher.
        device: where.
        seconds: after so many no new measurement begins.
        repeats: of each.
    """

    def __init__(self, shape: Shape, device: torch.device, *, seconds: float, repeats: int) -> None:
        self.shape, self.device, self.repeats = shape, device, repeats
        self._ends = time.monotonic() + seconds
        self.name = device_name(device)
        self.measured_tflops: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    def time_left(self, what: str) -> bool:
        """Whether there is; else the measurement is written down as left out."""
        if time.monotonic() < self._ends:
            return True
        self.left_out.append(what)
        return False

    def ours(
        self,
        dtype: str,
        loads: list[Workload],
        *,
        compile: bool = False,
        convolutions: Convolutions | None = None,
    ) -> TransformersTeacher | None:
        """Measure our teacher in a dtype on all workloads; with the device's convolutions where none are given."""
        system = "ours, compiled" if compile else f"ours, {convolutions}" if convolutions else "ours"
        if not self.time_left(f"{system}, {dtype}"):
            return None
        start_memory(self.device)
        teacher = random_teacher(self.shape, self.device, dtype, compile=compile, convolutions=convolutions)
        for load in loads:
            waveforms = load.waveforms()
            self.measure(system, dtype, load, lambda waveforms=waveforms: teacher.embed_batch(waveforms))
        return teacher

    def transformers(self, dtype: str, load: Workload, *, autocast: bool) -> None:
        """Measure transformers' own forward of the same model, as its documentation would have it."""
        system = "transformers, autocast" if autocast else "transformers"
        if self.shape.architecture == "whisper" or not self.time_left(f"{system}, {dtype}"):
            return
        start_memory(self.device)
        model = random_model(self.shape, self.device)
        if not autocast:
            model = model.to(DTYPES[dtype])
        waveforms = load.waveforms()
        inputs = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(w), dtype=torch.long) for w in waveforms], batch_first=True
        )
        context = torch.autocast(self.device.type, dtype=DTYPES[dtype]) if autocast else nullcontext()

        def forward() -> object:
            given = inputs.to(self.device, torch.float32 if autocast else DTYPES[dtype])
            with torch.inference_mode(), context:
                return model(given, attention_mask=None if load.padding == 0 else mask.to(self.device))

        self.measure(system, dtype, load, forward)

    def measure(self, system: str, dtype: str, load: Workload, call: Callable[[], object]) -> None:
        """One row."""
        if not self.time_left(f"{system}, {dtype}, {load.name}"):
            return
        began = time.monotonic()
        try:
            call()
            first_s = time.monotonic() - began
            seconds = median_seconds(call, self.device, repeats=self.repeats, warm_up=1)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            self.left_out.append(f"{system}, {dtype}, {load.name}: {str(error).splitlines()[0]}")
            return
        audio_s = sum(load.lengths_s)
        done = sum(operations(self.shape, round(s * RATE_HZ)) for s in load.lengths_s)
        tflops = done / seconds / 1e12
        peak = peak_tflops(self.name) if dtype != "float32" else None
        row = {
            "system": system,
            "dtype": dtype,
            "batch": load.name,
            "padding": round(load.padding, 3),
            "ms": round(1000 * seconds, 2),
            "first_call_s": round(first_s, 2),
            "hours_per_hour": round(audio_s / seconds, 1),
            "gflop_per_audio_s": round(done / audio_s / 1e9, 2),
            "tflops": round(tflops, 2),
            "share_of_peak": None if peak is None else round(tflops / peak, 3),
            "share_of_matmul": round(tflops / self.matmul(dtype), 3),
            "peak_gib": round(peak_gib(self.device), 2),
        }
        self.rows.append(row)
        show(row)

    def matmul(self, dtype: str) -> float:
        """TFLOP/s of a large matrix product here, measured once."""
        if dtype not in self.measured_tflops:
            self.measured_tflops[dtype] = measured_tflops(DTYPES[dtype], self.device)
        return self.measured_tflops[dtype]

    def parts(self, teacher: TransformersTeacher, load: Workload) -> dict[str, float]:
        """Share of a call's time in each part of the model; the rest is what stands between them."""
        waveforms = load.waveforms()
        clock = PartsClock(parts_of(teacher, self.shape), self.device)
        seconds = median_seconds(lambda: teacher.embed_batch(waveforms), self.device, repeats=1, warm_up=0)
        return {name: round(each / seconds, 3) for name, each in clock.seconds().items()}

    def quantizing(self, teacher: TransformersTeacher, load: Workload) -> dict[str, float]:
        """What 8 bytes a frame and their RRL take beside the teacher, of a random quantizer, by search."""
        torch.manual_seed(0)
        quantizer = Quantizer(teacher.info.dim, 256, 8).to(self.device).eval()
        batch = teacher.embed_batch(load.waveforms())
        row = next(r for r in self.rows if r["batch"] == load.name and r["system"] == "ours")
        shares = {}
        for search in SEARCHES:
            coder = Coder(quantizer, search=search)
            seconds = median_seconds(
                lambda coder=coder: coder(batch.frames[0], batch.lengths_B),  # type: ignore[misc]
                self.device,
                repeats=self.repeats,
                warm_up=1,
            )
            shares[search] = round(1000 * seconds / row["ms"], 4)
        return shares


def show(row: dict[str, Any]) -> None:
    """A line of the table, as soon as it is known."""
    share = "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.0f} % of the peak, "
    print(
        f"{row['system']:<23} {row['dtype']:<9} {row['batch']:<19} {row['ms']:9.1f} ms {row['hours_per_hour']:8.0f} "
        f"h/h {row['tflops']:7.1f} TFLOP/s  {share}{100 * row['share_of_matmul']:.0f} % of a matrix product, "
        f"{row['peak_gib']:.1f} GiB",
        flush=True,
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, the most telling first."""
    device = torch.device(arguments.device)
    shape = SHAPES[arguments.shape]
    bench = Bench(shape, device, seconds=arguments.seconds, repeats=arguments.repeats)
    loads = workloads(arguments.utterance_s)
    report: dict[str, Any] = {"shape": arguments.shape, "layer": shape.layer, "device": bench.name}
    report |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for number, dtype in enumerate(arguments.dtypes):
        teacher = bench.ours(dtype, loads)
        if number == 0 and teacher is not None and bench.rows:
            report["parts"] = bench.parts(teacher, loads[0])
            report["quantizer_to_teacher"] = bench.quantizing(teacher, loads[0])
        del teacher
        gc.collect()
        if number == 0:
            other: Convolutions = "library" if convolutions_for(device) == "products" else "products"
            bench.ours(dtype, loads[:2], convolutions=other)
            gc.collect()
            for load in (loads[0], loads[-1]):
                bench.transformers(dtype, load, autocast=dtype != "float32")
            if dtype != "float32":
                bench.transformers(dtype, loads[0], autocast=False)
            gc.collect()
    # Last, since nothing can end a compiler that takes long.
    if arguments.compile:
        bench.ours(arguments.dtypes[0], [loads[0], loads[-1]], compile=True)
    report |= {"peak_tflops": peak_tflops(bench.name), "matmul_tflops": bench.measured_tflops}
    return report | {"rows": bench.rows, "left_out": bench.left_out}


def main_figures(report: dict[str, Any]) -> dict[str, Any]:
    """The last line: of the first dtype and batch, and of ours against the others on it."""
    rows = report["rows"]
    if not rows:
        return {"shape": report["shape"], "device": report["device"], "left_out": report["left_out"]}
    ours = rows[0]
    figures = {
        name: report.get(name) for name in ("shape", "layer", "device", "parts", "quantizer_to_teacher")
    }
    figures |= {name: value for name, value in ours.items() if name != "system"}
    for row in rows:
        if (row["dtype"], row["batch"]) == (ours["dtype"], ours["batch"]) and row is not ours:
            ratio = row["ms"] / ours["ms"]
            if row["system"] == "ours, compiled":
                figures["compiled_speed"] = round(1 / ratio, 3)
            else:
                figures[f"speed_to_{row['system'].replace(', ', '_')}"] = round(ratio, 3)
    return figures


def main() -> int:
    """Parse, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="hubert-xlarge")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtypes", nargs="+", choices=list(DTYPES), help="default: all that the device has, bfloat16 first")
    add("--utterance-s", type=float, default=15.0)
    add("--repeats", type=int, default=5)
    add("--seconds", type=float, default=DEFAULT_SECONDS, help="after so many nothing new begins")
    add("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    add("--json", action="store_true", help="all figures on the last line")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(
            2, f"{parser.prog}: --device {arguments.device}: torch sees no GPU here; give --device cpu\n"
        )
    if arguments.dtypes is None:
        arguments.dtypes = ["bfloat16", "float32", "float16"] if arguments.device != "cpu" else ["float32"]
    report = run(arguments)
    for what in report["left_out"]:
        print(f"left out: {what}", file=sys.stderr)
    print(json.dumps(report if arguments.json else main_figures(report)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
