"""Wall time and peak memory of this process."""

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue emptied before and after."""
    _synchronize(device)
    started = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - started


def median_seconds(calls: list[Callable[[], object]], device: torch.device, runs: int = 5) -> list[float]:
    """Median wall time of each call over `runs` rounds, in which they take turns."""
    rounds = [[seconds(call, device) for call in calls] for _ in range(runs)]
    return [statistics.median(own) for own in zip(*rounds, strict=True)]


class PeakMemory:
    """The most memory that was held since this object was made, beyond what was held then.

    Of the GPU on CUDA, as torch allocated it. On Linux the kernel's mark is set back first: `ru_maxrss`
    would also hold what loading took, and what the parent process held when it started this one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        # Where this is no Linux, or not allowed, the mark then also covers the loading.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _peak_bytes()

    def megabytes(self) -> float:
        """Since the start, in units of 1,000,000 bytes."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _peak_bytes()
        return (peak - self._before) / 1e6


def _peak_bytes() -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
