"""How a training goes: means since the last report, and speed."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass

from mvqkd.models.distillation.model import Losses
from mvqkd.workers.distill.settings import MAIN

_OWN = "transducer"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a training, reported at every checkpoint, at the end of every epoch, and every half minute.

    Losses are means since the last report. `transducer_loss`: the student's own, in nats per utterance with a
    transcript. `codebook_loss`: nats per code, None without codes. `head_losses`: of every head, per target. `done`:
    share of the training, by audio; `hours`: of audio so far. `valid_wer`: of the held-out part after the last epoch,
    a fraction. `wait_share`: of the time since the last report, waiting for data.
    """

    epoch: int
    step: int
    done: float
    hours: float
    transducer_loss: float
    codebook_loss: float | None
    head_losses: dict[str, float]
    valid_wer: float | None
    lr: float
    utterances_per_s: float
    wait_share: float
    seconds: float
    left_out: int


class Meter:
    """Sums the losses up between two reports."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._waited_s = 0.0
        self._utterances = self._transcribed = 0
        self._own = 0.0
        self._head_losses: defaultdict[str, float] = defaultdict(float)
        self._head_targets: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Time since the last report."""
        return time.monotonic() - self._since

    def waited(self, seconds: float) -> None:
        """Count time that went by waiting for data."""
        self._waited_s += seconds

    def add(self, num_utterances: int, losses: Losses, *, transcribed: bool = True) -> None:
        """Count a batch."""
        self._utterances += num_utterances
        if transcribed:
            self._transcribed += num_utterances
            self._own += float(losses.parts[_OWN] if _OWN in losses.parts else sum(losses.parts.values()))
        for name, head in losses.heads.items():
            self._head_losses[name] += float(head.loss)
            self._head_targets[name] += head.count

    def report(
        self,
        *,
        epoch: int,
        step: int,
        done: float,
        hours: float,
        lr: float,
        valid_wer: float | None,
        left_out: int,
    ) -> Progress:
        """The means, which begin anew."""
        heads = {name: self._head_losses[name] / count for name, count in self._head_targets.items() if count}
        seconds = max(1e-9, self.seconds)
        progress = Progress(
            epoch=epoch,
            step=step,
            done=done,
            hours=hours,
            transducer_loss=self._own / max(1, self._transcribed),
            codebook_loss=heads.get(MAIN),
            head_losses=heads,
            valid_wer=valid_wer,
            lr=lr,
            utterances_per_s=self._utterances / seconds,
            wait_share=min(1.0, self._waited_s / seconds),
            seconds=time.monotonic() - self._began,
            left_out=left_out,
        )
        self._reset()
        return progress
