"""Fitting a quantizer to a sample of frames in memory."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.quantizer.metrics import ROWS_PER_BLOCK, mean_frame, rrl_of_blocks, usage_entropy_bits
from models.quantizer.quantizer import SCALE_SPEED, Quantizer
from models.quantizer.trainer import QuantizerTrainer

_PROGRESS_EVERY_STEPS = 10
_ROWS_PER_BLOCK = 65536


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to fit. Checked when built; a bad value raises ValueError with its name.

    Attributes:
        num_codebooks: codebooks of the result; with 256 entries, bytes per frame.
        codebook_size: entries per codebook: 4, 16, 64 or 256.
        method: "paper" is the schedule of arXiv 2211.00508 (see `trainer.py`).
        batch_size: frames per step.
        phase_one_steps: steps with square-root codebooks (one more is taken, as in the reference).
        phase_two_steps: steps with full codebooks.
        lr: initial learning rate.
        seed: fixes initial weights, order of the data and all else that is random.
        valid_every: steps between measurements of the RRL on the validation frames.
        state_every: steps between calls of `on_state`.
    """

    num_codebooks: int
    codebook_size: int = 256
    method: str = "paper"
    batch_size: int = 512
    phase_one_steps: int = 10000
    phase_two_steps: int = 10000
    lr: float = 0.005
    seed: int = 0
    valid_every: int = 500
    state_every: int = 500

    def __post_init__(self) -> None:
        if self.method != "paper":
            raise ValueError(f'method={self.method!r}; the only method is "paper"')
        if self.codebook_size not in (4, 16, 64, 256):
            raise ValueError(f"codebook_size={self.codebook_size}; use 4, 16, 64 or 256")
        counts = (
            "num_codebooks",
            "batch_size",
            "phase_one_steps",
            "phase_two_steps",
            "valid_every",
            "state_every",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be above 0")

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.phase_one_steps + self.phase_two_steps + 1


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """Where a fit stands after `step` of `steps` steps."""

    step: int
    steps: int
    phase: int
    train_rrl: float
    """Of the last batch, with the short search of a training step."""
    valid_rrl: float | None
    """With the full search, if it was measured at this step."""
    learning_rate: float
    elapsed_s: float
    """Including the time before a resumption."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A fitted quantizer (eval mode, on the device of the fit) and what is known of it."""

    quantizer: Quantizer
    history: list[FitProgress]
    """The steps at which valid_rrl was measured."""
    valid_rrl: float
    """sum ||x - x_hat||^2 / sum ||x - mean||^2 with the mean of the validation frames themselves."""
    usage_entropy_bits: list[float]
    """Per codebook, on the validation frames."""
    codebook_correlations: list[list[float]]
    steps: int
    seconds: float


def fit_quantizer(
    data: Tensor,
    *,
    valid: Tensor,
    config: FitConfig,
    device: torch.device | str | None = None,
    progress: Callable[[FitProgress], None] | None = None,
    on_state: Callable[[dict[str, Tensor]], None] | None = None,
    resume_state: dict[str, Tensor] | None = None,
) -> FitResult:
    """Fit a quantizer to frames that the caller has sampled.

    The frames are shifted by their mean and divided by one number before training, and both are folded back
    into the weights afterwards: the schedule's learning rates then mean the same for every teacher.
    Equal data, config, device kind and number of threads give equal weights, and so the same id. A fit may be
    resumed on another device or with another number of threads, on frames that were rounded otherwise there.

    Args:
        data: (M, dim), any float dtype, on any device; batches are moved to `device`.
        valid: (V, dim) frames not in `data`, best of other speakers.
        config: how to fit.
        device: where to fit; the device of `data` by default.
        progress: called every 10 steps and whenever valid_rrl was measured.
        on_state: called every `config.state_every` steps with tensors (flat names) to resume from.
        resume_state: what `on_state` got, to continue the same fit as if it had never stopped. The caller
            sees to it that the frames are those of the same utterances and teacher.

    Raises:
        ValueError: data or valid is empty, constant, misshapen, or holds NaN or infinity; or the state is of
            a fit to data of another shape or with other settings.
    """
    device = torch.device(device if device is not None else data.device)
    _check_frames("data", data)
    _check_frames("valid", valid)
    if valid.shape[1] != data.shape[1]:
        raise ValueError(f"valid has {valid.shape[1]} channels, data {data.shape[1]}")
    trainer = QuantizerTrainer(
        data.shape[1],
        config.num_codebooks,
        device,
        config.phase_one_steps,
        config.phase_two_steps,
        config.lr,
        codebook_size=config.codebook_size,
        seed=config.seed,
    )
    history: list[FitProgress] = []
    before_s = 0.0
    # What makes a fit this fit, beyond what the trainer itself checks.
    identity = torch.tensor([*data.shape, config.batch_size, config.seed])
    if resume_state is None:
        mean_D, scale = _mean_and_scale(data)
    else:
        history, before_s = _resume(trainer, resume_state, identity, config)
        # Not measured again: other threads and devices sum in another order, and the weights fit to these.
        mean_D, scale = resume_state["mean"], float(resume_state["scale"])
    mean_D = mean_D.to(device)
    started = time.monotonic()
    batches = _Batches(data, batch_size=config.batch_size, seed=config.seed)
    valid = valid.to(device)
    while not trainer.done():
        phase, learning_rate = trainer.phase, trainer.learning_rate
        batch_BD = batches.at(trainer.cur_iter).to(device, torch.float32)
        losses = trainer.step((batch_BD - mean_D) / scale)
        step = trainer.cur_iter
        measure = step % config.valid_every == 0 or trainer.done()
        if measure or step % _PROGRESS_EVERY_STEPS == 0:
            valid_rrl = None
            if measure:
                valid_rrl, _ = _evaluate(_folded(trainer.quantizer, mean_D, scale), valid)
            now = FitProgress(
                step=step,
                steps=config.steps,
                phase=phase,
                train_rrl=float(losses[0]),
                valid_rrl=valid_rrl,
                learning_rate=learning_rate,
                elapsed_s=before_s + time.monotonic() - started,
            )
            if measure:
                history.append(now)
            if progress is not None:
                progress(now)
        if on_state is not None and step % config.state_every == 0 and not trainer.done():
            state = {f"trainer.{name}": tensor for name, tensor in trainer.state_dict().items()}
            elapsed_s = before_s + time.monotonic() - started
            state |= {"identity": identity, "history": _packed(history, elapsed_s)}
            on_state({**state, "mean": mean_D.cpu(), "scale": torch.tensor(scale, dtype=torch.float64)})
    quantizer = _folded(trainer.get_quantizer(), mean_D, scale)
    quantizer.set_id_from_weights()
    final_rrl, entropy_N = _evaluate(quantizer, valid)
    return FitResult(
        quantizer=quantizer,
        history=history,
        valid_rrl=final_rrl,
        usage_entropy_bits=entropy_N.tolist(),
        codebook_correlations=quantizer.compute_codebook_correlations().tolist(),
        steps=trainer.cur_iter,
        seconds=before_s + time.monotonic() - started,
    )


class _Batches:
    """Shuffled batches, each a function of the seed and the step alone, so that resuming needs no state."""

    def __init__(self, data: Tensor, *, batch_size: int, seed: int) -> None:
        self._data = data
        self._batch_size = min(batch_size, len(data))
        self._per_epoch = len(data) // self._batch_size
        self._seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Tensor:
        epoch, position = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self._data), generator=generator).to(self._data.device)
            self._epoch = epoch
        return self._data[self._order[position * self._batch_size :][: self._batch_size]]


def _check_frames(name: str, frames: Tensor) -> None:
    if frames.ndim != 2 or not frames.is_floating_point() or frames.numel() == 0:
        raise ValueError(
            f"{name} is {frames.dtype} of shape {tuple(frames.shape)}; give floats (frames, dim)"
        )
    bad = [
        block * _ROWS_PER_BLOCK + int(row)
        for block, rows in enumerate(frames.split(_ROWS_PER_BLOCK))
        for row in (~rows.isfinite().all(dim=1)).nonzero()
    ]
    if bad:
        raise ValueError(f"{name} has NaN or infinity in {len(bad)} frames (rows {bad[:10]}); leave them out")


def _mean_and_scale(data: Tensor) -> tuple[Tensor, float]:
    """The mean frame (float32) and the root mean square distance from it per dimension."""
    blocks = data.split(_ROWS_PER_BLOCK)
    mean_D = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / len(data)
    square = sum(float((block.double() - mean_D).square().sum()) for block in blocks)
    if square == 0:
        raise ValueError("all frames of data are equal; there is nothing to fit")
    return mean_D.float(), (square / data.numel()) ** 0.5


@torch.no_grad()
def _folded(quantizer: Quantizer, mean_D: Tensor, scale: float) -> Quantizer:
    """The quantizer for frames x that does what `quantizer` does for (x - mean) / scale."""
    with torch.random.fork_rng(devices=[]):
        folded = Quantizer(quantizer.dim, quantizer.codebook_size, quantizer.num_codebooks)
    folded.to(mean_D.device)
    logits_factor = (quantizer.logits_scale * SCALE_SPEED).exp() / scale
    centers_factor = (quantizer.centers_scale * SCALE_SPEED).exp() * scale
    folded.to_logits.weight.copy_(quantizer.to_logits.weight)
    folded.to_logits.bias.copy_(
        quantizer.to_logits.bias - logits_factor * (quantizer.to_logits.weight @ mean_D)
    )
    folded.logits_scale.copy_(logits_factor.log() / SCALE_SPEED)
    folded.centers.copy_(quantizer.centers + mean_D / (quantizer.num_codebooks * centers_factor))
    folded.centers_scale.copy_(centers_factor.log() / SCALE_SPEED)
    return folded.eval()


def _evaluate(quantizer: Quantizer, valid: Tensor) -> tuple[float, Tensor]:
    """RRL with the mean of `valid` itself, and usage entropy (N,); no second copy of `valid` is made."""
    codes: list[Tensor] = []

    def reconstructed() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in valid.split(ROWS_PER_BLOCK):
            codes.append(quantizer.encode(rows, as_bytes=False))
            yield rows, quantizer.decode(codes[-1])

    figure = rrl_of_blocks(reconstructed(), mean_frame(valid))
    return figure, usage_entropy_bits(torch.cat(codes), quantizer.codebook_size)


def _packed(history: list[FitProgress], elapsed_s: float) -> Tensor:
    """The history as one row a measurement, and a last row that only tells the time."""
    rows = [[p.step, p.phase, p.train_rrl, p.valid_rrl, p.learning_rate, p.elapsed_s] for p in history]
    return torch.tensor([*rows, [0, 0, 0.0, 0.0, 0.0, elapsed_s]], dtype=torch.float64)


def _resume(
    trainer: QuantizerTrainer, state: dict[str, Tensor], identity: Tensor, config: FitConfig
) -> tuple[list[FitProgress], float]:
    complete = {"identity", "history", "mean", "scale"} <= set(state)
    if not complete or not torch.equal(state["identity"].cpu(), identity):
        raise ValueError(
            "this state is of a fit to other data or with other settings; resume with the same data and "
            "config, or start anew"
        )
    prefix = "trainer."
    trainer.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})
    *rows, last = state["history"].tolist()
    history = [
        FitProgress(
            step=int(step),
            steps=config.steps,
            phase=int(phase),
            train_rrl=train_rrl,
            valid_rrl=valid_rrl,
            learning_rate=learning_rate,
            elapsed_s=elapsed_s,
        )
        for step, phase, train_rrl, valid_rrl, learning_rate, elapsed_s in rows
    ]
    return history, last[-1]
