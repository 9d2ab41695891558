"""The training loop of a student: a plain class; Ray Train is added by the pipeline."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mvqkd.models.alignment import IGNORE
from mvqkd.models.distillation.model import DistillationModel, Losses
from mvqkd.models.features import HOP_SAMPLES, NUM_MEL_BINS, spec_augment
from mvqkd.models.students.conformer import subsampled_length
from mvqkd.workers.distill.average import WeightAverage
from mvqkd.workers.distill.batches import Batch, TableBatches
from mvqkd.workers.distill.settings import DistillConfig

MEL_FRAMES_PER_S = 16_000 / HOP_SAMPLES
NO_SOUND_TF = torch.zeros(32, NUM_MEL_BINS)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a training, reported at every checkpoint, at the end of every epoch, and every half minute.

    Losses are means since the last report: transducer in nats per utterance, codebook in nats per code.
    """

    epoch: int
    step: int
    total_steps: int
    transducer_loss: float
    codebook_loss: float | None
    lr: float
    utterances_per_s: float
    seconds: float
    left_out: int


REPORT_EVERY_S = 30.0

# Called with progress and, when the state should be kept, a function that returns it.
Report = Callable[[Progress, Callable[[], dict[str, Any]] | None], None]


class StudentTrainer:
    """Trains a student on the batches of one rank.

    Every step seeds its randomness from the run's seed and its own number, so a resumed training takes the
    same steps as one that was never interrupted.

    Args:
        model: student and codebook loss, on its device.
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
        clock = _Meter(self, report)
        while self._epoch < self._settings.epochs:
            for batch in self._batches.epoch(self._epoch, first_step=self._step_in_epoch):
                clock.add(batch, self._train_step(batch))
                self._step_in_epoch += 1
                if self._step_in_epoch == self._steps_per_epoch[self._epoch]:
                    continue  # the end of the epoch is reported below
                if self.step % self._settings.checkpoint_steps == 0:
                    clock.report(keep=True)
                elif clock.seconds >= REPORT_EVERY_S:
                    clock.report(keep=False)
            self._epoch, self._step_in_epoch = self._epoch + 1, 0
            if self._epoch > self._settings.epochs - self._settings.average_epochs:
                self._average.update(self.model.student)
            ended = self._epoch == self._settings.epochs
            clock.report(keep=ended or self.step % self._settings.checkpoint_steps == 0)

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
        if not batch.cut_ids and not _several_processes():
            return None  # all its audio was bad: nothing to learn, and nobody waits for gradients
        torch.manual_seed(random.Random(f"{settings.seed}/{self._rank}/{self.step}").getrandbits(63))
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr()
        self._wrapped.train()
        losses: Losses | None = None
        if not batch.cut_ids:
            # All audio of the batch was bad. The other ranks still wait for this rank's gradients. The silence
            # that stands in must not get into the statistics of the batch norms.
            for module in self._wrapped.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
            *inputs, targets_BTK = self._nothing().padded([NO_SOUND_TF], self._device)
            total = self._wrapped(*inputs, {"codes": targets_BTK}).total * 0.0
        else:
            features = [
                spec_augment(
                    features_TF,
                    time_masks=settings.time_masks,
                    max_time_frames=round(settings.time_mask_s * MEL_FRAMES_PER_S),
                    freq_masks=settings.freq_masks,
                    max_freq_bins=settings.freq_mask_bins,
                    generator=generator,
                )
                for features_TF in batch.features
            ]
            *inputs, targets_BTK = batch.padded(features, self._device)
            losses = self._wrapped(*inputs, {"codes": targets_BTK})
            total = losses.total
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

    def _nothing(self) -> Batch:
        """A batch of one silent utterance, to go through the motions with."""
        head = dict(self.model.heads).get("codes")
        targets_TK = torch.full(
            (subsampled_length(len(NO_SOUND_TF)), head.codebooks.num_codebooks if head else 0), IGNORE
        )
        return Batch(
            cut_ids=(),
            features=(NO_SOUND_TF,),
            units=(torch.ones(1, dtype=torch.long),),
            targets=(targets_TK,),
        )

    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, then linear to 2 % at the end."""
        warmup = min(self._settings.warmup_steps, max(1, self.total_steps // 5))
        if self.step < warmup:
            return self._settings.lr * (self.step + 1) / warmup
        left = (self.total_steps - self.step) / max(1, self.total_steps - warmup)
        return self._settings.lr * max(0.02, left)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self._epoch

    @property
    def left_out(self) -> dict[str, str]:
        """Utterances that could not be used so far, and why."""
        return dict(self._batches.left_out)


class _Meter:
    """Means since the last report, and speed."""

    def __init__(self, trainer: StudentTrainer, report: Report) -> None:
        self._trainer, self._report, self._began = trainer, report, time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._utterances = self._targets = 0
        self._transducer = self._codebook = 0.0

    @property
    def seconds(self) -> float:
        """Time since the last report."""
        return time.monotonic() - self._since

    def add(self, batch: Batch, losses: Losses | None) -> None:
        if losses is None:
            return
        self._utterances += len(batch.cut_ids)
        self._transducer += float(losses.parts["transducer"])
        if "codes" in losses.heads:
            self._codebook += float(losses.heads["codes"].loss)
            self._targets += losses.heads["codes"].count

    def report(self, *, keep: bool) -> None:
        trainer = self._trainer
        progress = Progress(
            epoch=trainer.epoch,
            step=trainer.step,
            total_steps=trainer.total_steps,
            transducer_loss=self._transducer / max(1, self._utterances),
            codebook_loss=self._codebook / self._targets if self._targets else None,
            lr=trainer.lr(),
            utterances_per_s=self._utterances / max(1e-9, time.monotonic() - self._since),
            seconds=time.monotonic() - self._began,
            left_out=len(trainer.left_out),
        )
        self._report(progress, trainer.state if keep else None)
        self._reset()


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
