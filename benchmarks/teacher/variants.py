"""What each way of computing the parts of a teacher brings, one beside the other.

    python -m benchmarks.teacher.variants [--shape hubert-xlarge] [--device cuda] [--only products ...]

For each way and batch: the median of a call, how long the host is busy with it, the parts, and the deviation of its
embeddings from those in float32 with torch's convolutions. The last line is all of it as JSON.
"""

# Shape suffixes: none.

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quantizer.run import device_name
from benchmarks.teacher.gauges import PartsClock, median_seconds, peak_gib, start_memory
from benchmarks.teacher.shapes import SHAPES, Shape, parts_of, random_teacher
from benchmarks.teacher.workloads import Workload, workloads
from mvqkd.models.teachers import front_end, norms, positions, products, waveform
from mvqkd.models.teachers.base import TransformersTeacher
from mvqkd.models.teachers.products import Convolutions


@contextmanager
def changed(owner: Any, name: str, value: object) -> Iterator[None]:
    """An attribute is another meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def in_blocks(size: int) -> Callable[[ExitStack], None]:
    """Positional convolutions with so many outputs in a row of a product."""
    return lambda stack: stack.enter_context(changed(products, "LARGEST_BLOCK", size))


def of_bytes(size: int) -> Callable[[ExitStack], None]:
    """The front end in pieces of so many bytes of activations."""
    return lambda stack: stack.enter_context(changed(waveform, "_BYTES_AT_ONCE", size))


def norms_in_tensors(stack: ExitStack) -> None:
    """The norms of the front end in tensor operations."""
    stack.enter_context(changed(front_end, "choose_norm", lambda device: norms.norm_in_tensors))


def plain_layers(stack: ExitStack) -> None:
    """The norms of the layers as torch has them."""
    stack.enter_context(changed(norms, "PRODUCT_NORMS", set()))


def rounded_residual(stack: ExitStack) -> None:
    """The residual stream in bfloat16 where the norms come first."""
    stack.enter_context(changed(positions, "wide", lambda x: x.bfloat16()))


def before(stack: ExitStack) -> None:
    """As it was before there were products."""
    plain_layers(stack)
    rounded_residual(stack)


WAYS: dict[str, tuple[Convolutions, Callable[[ExitStack], None]]] = {
    "library as before": ("library", before),
    "products": ("products", lambda stack: None),
    "products, blocks of 1": ("products", in_blocks(1)),
    "products, blocks of 4": ("products", in_blocks(4)),
    "products, blocks of 16": ("products", in_blocks(16)),
    "products, 256 MiB": ("products", of_bytes(2**28)),
    "products, 4 GiB": ("products", of_bytes(2**32)),
    "products, norms in tensors": ("products", norms_in_tensors),
    "products, rounded residual": ("products", rounded_residual),
    "products, plain layers": ("products", plain_layers),
}


def measure(teacher: TransformersTeacher, shape: Shape, load: Workload, repeats: int) -> dict[str, Any]:
    """One way on one batch."""
    device = teacher._device
    waveforms = load.waveforms()
    start_memory(device)
    seconds = median_seconds(lambda: teacher.embed_batch(waveforms), device, repeats=repeats, warm_up=2)
    began = time.perf_counter()
    teacher.embed_batch(waveforms)
    host_s = time.perf_counter() - began
    clock = PartsClock(parts_of(teacher, shape), device)
    median_seconds(lambda: teacher.embed_batch(waveforms), device, repeats=1, warm_up=0)
    parts = {name: round(1000 * each, 2) for name, each in clock.seconds().items()}
    return {
        "ms": round(1000 * seconds, 2),
        "host_ms": round(1000 * host_s, 2),
        "hours_per_hour": round(sum(load.lengths_s) / seconds),
        "parts_ms": parts,
        "peak_gib": round(peak_gib(device), 2),
    }


def deviation(found: Tensor, exact: Tensor) -> float:
    """Squared, as a share of the variance."""
    return float((found - exact).square().sum() / (exact - exact.mean(0)).square().sum())


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways on all batches, until the time is over."""
    device, shape = torch.device(arguments.device), SHAPES[arguments.shape]
    ends = time.monotonic() + arguments.seconds
    eight, many, _, mixed = workloads(arguments.utterance_s)
    reference = random_teacher(shape, device, "float32", compile=False, convolutions="library")
    exact = reference.embed_batch(eight.waveforms()).frames[0]
    report: dict[str, Any] = {"shape": arguments.shape, "device": device_name(device), "ways": {}}
    if device.type == "cuda":
        report["ways"]["float32, library"] = {eight.name: measure(reference, shape, eight, 2)}
        print(report["ways"]["float32, library"])
    del reference
    for name, (convolutions, change) in WAYS.items():
        if arguments.only and name not in arguments.only:
            continue
        if time.monotonic() > ends:
            print(f"left out: {name}")
            continue
        gc.collect()
        with ExitStack() as stack:
            change(stack)
            report["ways"][name] = rows = {}
            try:
                teacher = random_teacher(
                    shape, device, arguments.dtype, compile=False, convolutions=convolutions
                )
                found = teacher.embed_batch(eight.waveforms()).frames[0]
                rows["deviation"] = deviation(found, exact)
                for load in (many, eight, mixed) if "," not in name else (many,):
                    rows[load.name] = measure(teacher, shape, load, arguments.repeats)
                    print(f"{name:<28} {load.name:<20} {rows['deviation']:.2e} {rows[load.name]}", flush=True)
            except RuntimeError as error:
                rows["error"] = str(error).splitlines()[0]
                print(f"{name:<28} {rows['error']}", flush=True)
            teacher = nn.Identity()  # type: ignore[assignment]
    return report


def main() -> int:
    """Parse, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teacher.variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="hubert-xlarge")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default="bfloat16")
    add("--only", nargs="*", default=[], help="ways by name; all by default")
    add("--utterance-s", type=float, default=15.0)
    add("--repeats", type=int, default=3)
    add("--seconds", type=float, default=60.0, help="after so many nothing new begins")
    print(json.dumps(run(parser.parse_args())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
