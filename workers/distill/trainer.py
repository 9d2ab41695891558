"""The training loop of a student: a plain class; Ray Train is added by the pipeline.

Shape suffixes: T frames, F features.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.models.distillation.model import DistillationModel, Losses
from mvqkd.workers.distill.augment import Augment
from mvqkd.workers.distill.data import DataState, Step, TrainingData
from mvqkd.workers.distill.examples import Batch, Example, nothing_to_predict, padding_of
from mvqkd.workers.distill.held_out import HeldOut
from mvqkd.workers.distill.keeper import Keeper
from mvqkd.workers.distill.meter import Meter, Progress
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.target_sources import LiveSource

REPORT_EVERY_S = 30.0
SILENCE_FRAMES = 8

# Called with progress and, when the state should be kept, a function that returns it.
Report = Callable[[Progress, Callable[[], dict[str, Any]] | None], None]


class StudentTrainer:
    """Trains a student on the batches of one rank.

    Every batch seeds its randomness from the run's seed and its own number among all ranks' batches, so a resumed
    training takes the same steps as one that was never interrupted, and two workers those of one that accumulates two.

    Args:
        model: student and heads, on its device.
        data: of this rank.
        settings: of the training.
        device: of the model.
        live: targets that are made in the training step, by the name of their head.
        held_out: this rank's share of what the weights are chosen by.
        wrap: how the model is wrapped for several processes (`ray.train.torch.prepare_model`).
    """

    def __init__(
        self,
        model: DistillationModel,
        data: TrainingData,
        settings: DistillConfig,
        *,
        device: torch.device,
        live: Mapping[str, LiveSource] | None = None,
        held_out: HeldOut | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self._settings, self._data, self._device = settings, data, device
        self._live = dict(live or {})
        self.model = model
        self._wrapped = wrap(model)
        self._augment = Augment(
            settings,
            feature_rate_hz=model.student.feature_rate_hz,
            mask_value=model.student.mask_value,
        )
        self.keeper = Keeper(model.student, settings, held_out)
        self._optimizer = torch.optim.AdamW(
            _decay_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98)
        )
        bf16 = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._state = DataState()
        self.step = 0
        self._warm_done = 0.0  # `done` when the warm-up was over

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._state.own.epoch

    @property
    def done(self) -> float:
        """Share of the training that is behind, by audio."""
        if self.epoch == self._settings.epochs:
            return 1.0  # what was left and made no whole step is in no sum
        return min(1.0, self._state.own_s / (self._data.epoch_s * self._settings.epochs))

    def run(self, report: Report) -> None:
        """Train to the last epoch, from wherever `load_state` left off."""
        meter = Meter()

        def tell(*, keep: bool) -> None:
            progress = meter.report(
                epoch=self.epoch,
                step=self.step,
                done=self.done,
                hours=(self._state.own_s + self._state.codes_s) / 3600,
                lr=self.lr(),
                valid_wer=self.keeper.last_wer,
                left_out=len(self.left_out),
            )
            report(progress, self.state if keep else None)

        for step in self._waited_for(self._data.steps(self._state), meter):
            epoch = self.epoch
            self._train_step(step, meter)
            if self._warmth < 1.0:
                self._warm_done = self.done
            self._state, self.step = step.after, self.step + 1
            self.keeper.after_step(self.model.student)
            if self.epoch > epoch:
                self.keeper.after_epoch(self.model.student, epoch=self.epoch)
            ended = self.epoch == self._settings.epochs
            if ended:
                self.keeper.end(self.model.student)
            keep = ended or self.step % self._settings.checkpoint_steps == 0
            if keep or self.epoch > epoch or meter.seconds >= REPORT_EVERY_S:
                tell(keep=keep)

    def _waited_for(self, steps: Iterator[Step], meter: Meter) -> Iterator[Step]:
        while True:
            began = time.monotonic()
            step = next(steps, None)
            meter.waited(time.monotonic() - began)
            if step is None:
                return
            yield step

    def student_state(self) -> dict[str, Tensor]:
        """Weights to recognize with, on the CPU; see `Keeper`."""
        return self.keeper.student_state()

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on; loadable with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "keeper": self.keeper.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "data": self._state.to_dict(),
            "step": self.step,
            "warm_done": self._warm_done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.keeper.load_state_dict(state["keeper"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._state, self.step = DataState.from_dict(state["data"]), state["step"]
        self._warm_done = state["warm_done"]

    def _train_step(self, step: Step, meter: Meter) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr()
        self._wrapped.train()
        num_own = max(1, sum(batch.transcribed for batch in step.batches))
        weights = {"own_weight": 1 / num_own, "heads_weight": 1 / len(step.batches)}
        totals: list[tuple[Batch, Tensor]] = []
        for number, batch in enumerate(step.batches, start=1):
            with self._synchronized(number == len(step.batches)):
                total = self._backward(batch, weights, meter)
            if total is not None:
                totals.append((batch, total))
        if not totals and not _several_processes():
            return  # all its audio was bad: nothing to learn, and nobody waits for gradients
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.grad_clip)
        if not norm.isfinite():
            self._refuse(totals)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _synchronized(self, wanted: bool) -> AbstractContextManager[None]:
        """Gradients go to the other ranks with the last batch of a step, which has one for every parameter."""
        if wanted or not isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def _backward(self, batch: Batch, weights: Mapping[str, float], meter: Meter) -> Tensor | None:
        """Add the gradients of a batch; its loss, detached, or None where all its audio was bad."""
        if not batch.examples and not _several_processes():
            return None
        name = f"{self._settings.seed}/{self.step}/{batch.number}"
        torch.manual_seed(random.Random(name).getrandbits(63))
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        if not batch.examples:
            (self._losses(self._silence(batch), None, {}).total * 0.0).backward()
            return None
        losses = self._losses(batch, generator, weights)
        losses.total.backward()
        meter.add(len(batch.examples), losses, transcribed=batch.transcribed)
        return losses.total.detach()

    def _losses(
        self, batch: Batch, generator: torch.Generator | None, weights: Mapping[str, float]
    ) -> Losses:
        features = [
            example.features_TF if generator is None else self._augment(example.features_TF, generator)
            for example in batch.examples
        ]
        *tensors, targets = batch.padded(features, self._device)
        for name, source in self._live.items():
            targets[name] = self._made_now(source, batch)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            losses: Losses = self._wrapped(*tensors, targets, **weights)
        return losses

    def _made_now(self, source: LiveSource, batch: Batch) -> Tensor:
        num_frames = [self.model.student.num_frames(len(example.features_TF)) for example in batch.examples]
        waveforms = [example.waveform_T for example in batch.examples if example.waveform_T is not None]
        if len(waveforms) == len(batch.examples):
            targets = source.targets(waveforms, num_frames)
        else:
            targets = [nothing_to_predict(source.spec, frames) for frames in num_frames]  # silence
        padded = pad_sequence(targets, batch_first=True, padding_value=padding_of(source.spec))
        return padded.to(self._device)

    def _silence(self, batch: Batch) -> Batch:
        """Stands in for a batch all of whose audio was bad, while the other ranks wait for its gradients.

        It must not get into the statistics of the batch norms, which this puts into evaluation.
        """
        for module in self._wrapped.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        specs: dict[str, TargetSpec] = self._data.specs
        return silence(self.model, specs, transcribed=batch.transcribed)

    def _refuse(self, totals: list[tuple[Batch, Tensor]]) -> None:
        wrong = [batch for batch, total in totals if not total.isfinite()] or [batch for batch, _ in totals]
        names = [cut_id for batch in wrong for cut_id in batch.cut_ids]
        raise ValueError(
            f"step {self.step}: the loss or its gradient holds NaN or infinity (loss "
            f"{', '.join(f'{float(total):g}' for _, total in totals)}, utterances {', '.join(names)}); look at their "
            "audio and transcripts, lower distill.lr or raise distill.warmup_steps"
        )

    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, over at most a fifth of the training, then linear to 2 % at
        the end."""
        left = (1.0 - self.done) / max(1e-9, 1.0 - self._warm_done)
        return self._settings.lr * min(1.0, self._warmth) * min(1.0, max(0.02, left))

    @property
    def _warmth(self) -> float:
        """From 1 on the warm-up is over."""
        return max((self.step + 1) / max(1, self._settings.warmup_steps), self.done / 0.2)

    @property
    def left_out(self) -> dict[str, str]:
        """Utterances that could not be used so far, and why; those of the held-out part too."""
        return {**self._data.left_out, **self.keeper.left_out}


def silence(model: DistillationModel, specs: Mapping[str, TargetSpec], *, transcribed: bool = True) -> Batch:
    """A batch of one utterance without a sound and without anything to predict."""
    student = model.student
    features_TF = student.features(torch.zeros(SILENCE_FRAMES * student.frames.min_samples))
    num_frames = student.num_frames(len(features_TF))
    example = Example(
        cut_id="",
        features_TF=features_TF,
        units_U=torch.ones(1, dtype=torch.long),
        targets={name: nothing_to_predict(spec, num_frames) for name, spec in specs.items()},
    )
    return Batch(examples=(example,), specs=specs, transcribed=transcribed)


def _several_processes() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Tensors of one dimension (biases, the weights of norms) are not decayed; all others are: matrices,
    convolutions, embeddings."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
