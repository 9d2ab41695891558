"""How a training goes: means since the last report, and speed."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass

from mvqkd.models.distillation.model import Losses

CODEBOOK = "codebook"
"""Name of the head that learns the codes of the run's own table."""
_MAIN = "transducer"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a training, reported at every checkpoint, at the end of every epoch, and every half minute.

    Losses are means since the last report. `transducer_loss`: the student's own, in nats per utterance.
    `codebook_loss`: nats per code, None without codes. `head_losses`: of every head, per target.
    """

    epoch: int
    step: int
    total_steps: int
    transducer_loss: float
    codebook_loss: float | None
    head_losses: dict[str, float]
    lr: float
    utterances_per_s: float
    seconds: float
    left_out: int


class Meter:
    """Sums the losses up between two reports."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._utterances = 0
        self._own = 0.0
        self._head_losses: defaultdict[str, float] = defaultdict(float)
        self._head_targets: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Time since the last report."""
        return time.monotonic() - self._since

    def add(self, num_utterances: int, losses: Losses) -> None:
        """Count a step."""
        self._utterances += num_utterances
        self._own += float(losses.parts[_MAIN] if _MAIN in losses.parts else sum(losses.parts.values()))
        for name, head in losses.heads.items():
            self._head_losses[name] += float(head.loss)
            self._head_targets[name] += head.count

    def report(self, *, epoch: int, step: int, total_steps: int, lr: float, left_out: int) -> Progress:
        """The means, which begin anew."""
        heads = {name: self._head_losses[name] / count for name, count in self._head_targets.items() if count}
        progress = Progress(
            epoch=epoch,
            step=step,
            total_steps=total_steps,
            transducer_loss=self._own / max(1, self._utterances),
            codebook_loss=heads.get(CODEBOOK),
            head_losses=heads,
            lr=lr,
            utterances_per_s=self._utterances / max(1e-9, self.seconds),
            seconds=time.monotonic() - self._began,
            left_out=left_out,
        )
        self._reset()
        return progress
