"""The training loop of a student: a plain class; Ray Train is added by the pipeline.

Shape suffixes: T frames, F features.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mvqkd.models.distillation.model import DistillationModel, Losses
from mvqkd.workers.distill.augment import Augment
from mvqkd.workers.distill.average import WeightAverage
from mvqkd.workers.distill.batches import TableBatches
from mvqkd.workers.distill.examples import Batch, Example, padding_of, width_of
from mvqkd.workers.distill.meter import Meter, Progress
from mvqkd.workers.distill.settings import DistillConfig

REPORT_EVERY_S = 30.0
SILENCE_FRAMES = 8

# Called with progress and, when the state should be kept, a function that returns it.
Report = Callable[[Progress, Callable[[], dict[str, Any]] | None], None]


class StudentTrainer:
    """Trains a student on the batches of one rank.

    Every step seeds its randomness from the run's seed and its own number, so a resumed training takes the
    same steps as one that was never interrupted.

    Args:
        model: student and heads, on its device.
        batches: of this rank.
        settings: of the training.
        device: of the model.
        wrap: how the model is wrapped for several processes (`ray.train.torch.prepare_model`).
        rank: of this process, so that ranks draw different masks.
    """

    def __init__(
        self,
        model: DistillationModel,
        batches: TableBatches,
        settings: DistillConfig,
        *,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        rank: int = 0,
    ) -> None:
        self._settings, self._batches, self._device, self._rank = settings, batches, device, rank
        self.model = model
        self._wrapped = wrap(model)
        self._augment = Augment(settings, feature_rate_hz=model.student.feature_rate_hz)
        self._average = WeightAverage(model.student)
        self._optimizer = torch.optim.AdamW(
            _decay_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98)
        )
        self._steps_per_epoch = [len(batches.plan_epoch(epoch)) for epoch in range(settings.epochs)]
        self.total_steps = sum(self._steps_per_epoch)
        self._epoch, self._step_in_epoch = 0, 0

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return sum(self._steps_per_epoch[: self._epoch]) + self._step_in_epoch

    def run(self, report: Report) -> None:
        """Train to the last epoch, from wherever `load_state` left off."""
        meter = Meter()

        def tell(*, keep: bool) -> None:
            progress = meter.report(
                epoch=self._epoch,
                step=self.step,
                total_steps=self.total_steps,
                lr=self.lr(),
                left_out=len(self._batches.left_out),
            )
            report(progress, self.state if keep else None)

        while self._epoch < self._settings.epochs:
            for batch in self._batches.epoch(self._epoch, first_step=self._step_in_epoch):
                losses = self._train_step(batch)
                if losses is not None:
                    meter.add(len(batch.examples), losses)
                self._step_in_epoch += 1
                if self._step_in_epoch == self._steps_per_epoch[self._epoch]:
                    continue  # the end of the epoch is reported below
                if self.step % self._settings.checkpoint_steps == 0:
                    tell(keep=True)
                elif meter.seconds >= REPORT_EVERY_S:
                    tell(keep=False)
            self._epoch, self._step_in_epoch = self._epoch + 1, 0
            if self._epoch > self._settings.epochs - self._settings.average_epochs:
                self._average.update(self.model.student)
            ended = self._epoch == self._settings.epochs
            tell(keep=ended or self.step % self._settings.checkpoint_steps == 0)

    def student_state(self) -> dict[str, Tensor]:
        """Weights to recognize with: the mean of the last epochs, on the CPU."""
        return {name: tensor.to("cpu").contiguous() for name, tensor in self._average.mean().items()}

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on; loadable with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epoch": self._epoch,
            "step_in_epoch": self._step_in_epoch,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._epoch, self._step_in_epoch = state["epoch"], state["step_in_epoch"]

    def _train_step(self, batch: Batch) -> Losses | None:
        settings = self._settings
        if not batch.examples and not _several_processes():
            return None  # all its audio was bad: nothing to learn, and nobody waits for gradients
        torch.manual_seed(random.Random(f"{settings.seed}/{self._rank}/{self.step}").getrandbits(63))
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr()
        self._wrapped.train()
        losses: Losses | None = None
        if batch.examples:
            features = [self._augment(example.features_TF, generator) for example in batch.examples]
            losses = self._wrapped(*batch.padded(features, self._device))
            total = losses.total
        else:
            total = self._loss_of_silence() * 0.0
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        if not norm.isfinite():
            raise ValueError(
                f"step {self.step}: the gradient holds NaN or infinity (loss {float(total.detach())}, "
                f"utterances {', '.join(batch.cut_ids)}); lower distill.lr or raise distill.warmup_steps"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return losses

    def _loss_of_silence(self) -> Tensor:
        """All audio of this rank's batch was bad, and the other ranks wait for its gradients.

        The silence that stands in must not get into the statistics of the batch norms.
        """
        for module in self._wrapped.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        student = self.model.student
        features_TF = student.features(torch.zeros(SILENCE_FRAMES * student.frames.min_samples))
        num_frames = student.num_frames(len(features_TF))
        silence = Example(
            cut_id="",
            features_TF=features_TF,
            units_U=torch.ones(1, dtype=torch.long),
            targets={
                name: torch.full((num_frames, width_of(spec)), padding_of(spec))
                for name, spec in self._batches.specs.items()
            },
        )
        batch = Batch(examples=(silence,), specs=self._batches.specs)
        losses: Losses = self._wrapped(*batch.padded([features_TF], self._device))
        return losses.total

    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, then linear to 2 % at the end."""
        warmup = min(self._settings.warmup_steps, max(1, self.total_steps // 5))
        if self.step < warmup:
            return self._settings.lr * (self.step + 1) / warmup
        left = (self.total_steps - self.step) / max(1, self.total_steps - warmup)
        return self._settings.lr * max(0.02, left)

    @property
    def left_out(self) -> dict[str, str]:
        """Utterances that could not be used so far, and why."""
        return dict(self._batches.left_out)


def _several_processes() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Tensors of one dimension (biases, the weights of norms) are not decayed; all others are: matrices,
    convolutions, embeddings."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
