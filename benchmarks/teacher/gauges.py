"""Clocks, peaks and memory of a device.

Shape suffixes: none.
"""

import resource
import statistics
import time
from collections.abc import Callable

import torch

# Dense matrix products of 16-bit floats, in TFLOP/s, of the makers' data sheets; the first name that fits.
_PEAKS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}


def peak_tflops(device_name: str) -> float | None:
    """Of 16-bit floats by the data sheet; None for a device that is not in the table."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)


def median_seconds(call: Callable[[], object], device: torch.device, *, repeats: int, warm_up: int) -> float:
    """Of a call with all that it queues, after some that do not count."""
    for _ in range(warm_up):
        call()
    if device.type != "cuda":
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    torch.cuda.synchronize(device)
    for began, ended in events:
        began.record()
        call()
        ended.record()
        torch.cuda.synchronize(device)
    return statistics.median(began.elapsed_time(ended) / 1000 for began, ended in events)


def measured_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """Of a matrix product of 8192 rows, columns and sums (1024 on the CPU); float32 without TF32."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = median_seconds(lambda: a @ b, device, repeats=5, warm_up=2)
    return 2 * size**3 / seconds / 1e12


def start_memory(device: torch.device) -> None:
    """From here on the peak is counted; on the CPU it is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Of memory, since `start_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class PartsClock:
    """Where the time of a model goes: seconds inside of modules, by name of the part.

    Args:
        parts: the modules of each part; a module inside of another that is named here counts in both.
        device: where they run.
    """

    def __init__(self, parts: dict[str, list[torch.nn.Module]], device: torch.device) -> None:
        self._device = device
        self._marks: dict[str, list[tuple[object, object]]] = {name: [] for name in parts}
        self._handles = []
        for name, modules in parts.items():
            for module in modules:
                began: list[object] = []
                before = module.register_forward_pre_hook(lambda *_, b=began: b.append(self._mark()))
                after = module.register_forward_hook(
                    lambda *_, b=began, n=name: self._marks[n].append((b.pop(), self._mark()))
                )
                self._handles += [before, after]

    def _mark(self) -> object:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """By part, since the last time; ends the measuring."""
        for handle in self._handles:
            handle.remove()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return {name: sum(_between(*pair) for pair in pairs) for name, pairs in self._marks.items()}


def _between(began: object, ended: object) -> float:
    if isinstance(began, float) and isinstance(ended, float):
        return ended - began
    assert isinstance(began, torch.cuda.Event)
    return float(began.elapsed_time(ended)) / 1000
