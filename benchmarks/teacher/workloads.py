"""Batches that teachers are measured on.

Shape suffixes: none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.teacher.shapes import RATE_HZ


@dataclass(frozen=True)
class Workload:
    """A batch: its name and how long its utterances are."""

    name: str
    lengths_s: tuple[float, ...]

    def waveforms(self) -> list[Tensor]:
        """Noise, float32 ``(num_samples,)`` on the host."""
        generator = torch.Generator().manual_seed(1)
        return [0.1 * torch.randn(round(s * RATE_HZ), generator=generator) for s in self.lengths_s]

    @property
    def padding(self) -> float:
        """Share of a padded batch that is not audio."""
        return 1 - sum(self.lengths_s) / (len(self.lengths_s) * max(self.lengths_s))


def workloads(seconds: float) -> list[Workload]:
    """LibriSpeech has utterances of 12.3 s on average and 15 s for the most part; `seconds` scales them."""
    near = tuple(seconds * (1 - 0.01 * i) for i in range(8))
    mixed = tuple(seconds * (0.3 + 0.1 * i) for i in range(8))
    return [
        Workload(f"8 x {seconds:g} s", (seconds,) * 8),
        Workload(f"32 x {seconds:g} s", (seconds,) * 32),
        Workload(f"8 of {near[-1]:.3g} to {near[0]:.3g} s", near),
        Workload(f"8 of {mixed[0]:.3g} to {mixed[-1]:.3g} s", mixed),
    ]
