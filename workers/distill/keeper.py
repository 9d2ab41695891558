"""Which weights of a training are kept: a mean of them, or those of the epoch that recognized best."""

from typing import Any

import torch
from torch import Tensor

from mvqkd.models.students.base import Student
from mvqkd.workers.distill.average import WeightAverage
from mvqkd.workers.distill.held_out import HeldOut
from mvqkd.workers.distill.settings import DistillConfig


class Keeper:
    """Averages weights and, where there is a held-out part, keeps the best of all epochs beside them.

    The mean is of the last `average_epochs` epochs, or with `ema` of all steps. At the end the weights are those that
    made fewer word errors in the held-out part: the mean, or the best epoch. Loss does not decide: it goes up while
    errors still go down.

    Args:
        student: that is trained.
        settings: of the training.
        held_out: this rank's share of the held-out part.

    Attributes:
        last_wer: of the held-out part after the last epoch, over all ranks; None without one.
        best_wer: the lowest so far.
    """

    def __init__(self, student: Student, settings: DistillConfig, held_out: HeldOut | None = None) -> None:
        self._settings, self._held_out = settings, held_out
        self._average = WeightAverage(student, decay=settings.ema)
        self._best: dict[str, Tensor] | None = None
        self.last_wer: float | None = None
        self.best_wer: float | None = None

    @property
    def left_out(self) -> dict[str, str]:
        """Utterances of the held-out part that could not be used, and why."""
        return {} if self._held_out is None else self._held_out.left_out

    def after_step(self, student: Student) -> None:
        """The student has taken a step."""
        if self._settings.ema:
            self._average.update(student)

    def after_epoch(self, student: Student, *, epoch: int) -> None:
        """So many epochs are over."""
        settings = self._settings
        if not settings.ema and epoch > settings.epochs - settings.average_epochs:
            self._average.update(student)
        if self._held_out is None:
            return
        self.last_wer = self._wer(student)
        if self.best_wer is None or self.last_wer < self.best_wer:
            self.best_wer = self.last_wer
            self._best = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}

    def end(self, student: Student) -> None:
        """The training is over: settle which weights are kept."""
        if self._held_out is None or self._best is None:
            return
        now = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
        student.load_state_dict(self._average.mean())
        averaged_wer = self._wer(student)
        student.load_state_dict(now)
        assert self.best_wer is not None
        if averaged_wer <= self.best_wer:
            self.best_wer, self._best = averaged_wer, None

    def _wer(self, student: Student) -> float:
        assert self._held_out is not None
        errors, words = self._held_out.errors(student)
        counts = torch.tensor([errors, words], device=next(student.parameters()).device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        errors, words = counts.tolist()
        if not words:
            raise ValueError(
                "distill.valid_hours: no utterance of the held-out part can be recognized, so no weights can be "
                f"chosen by it; {self._held_out.last_problem}"
            )
        return float(errors / words)

    def student_state(self) -> dict[str, Tensor]:
        """Weights to recognize with, on the CPU."""
        kept = self._average.mean() if self._best is None else self._best
        return {name: tensor.to("cpu").contiguous() for name, tensor in kept.items()}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from; tensors are not copied."""
        return {
            "average": self._average.state_dict(),
            "best": self._best,
            "best_wer": self.best_wer,
            "last_wer": self.last_wer,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned. Raises ValueError for the state of another model."""
        self._average.load_state_dict(state["average"])
        self._best, self.best_wer, self.last_wer = state["best"], state["best_wer"], state["last_wer"]
