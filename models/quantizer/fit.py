"""Fitting a quantizer to a sample of frames in memory."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from mvqkd.models.quantizer.fit_config import FitConfig, FitProgress, FitResult
from mvqkd.models.quantizer.lsq import START_FRAMES_PER_ENTRY, LsqFit
from mvqkd.models.quantizer.metrics import ROWS_PER_BLOCK, mean_frame, rrl_of_blocks, usage_entropy_bits
from mvqkd.models.quantizer.paper import QuantizerTrainer
from mvqkd.models.quantizer.quantizer import SCALE_SPEED, Quantizer

_PROGRESS_EVERY_STEPS = 10
_ROWS_PER_BLOCK = 65536


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

    The frames are shifted by their mean and divided by one number first, and both are folded back into the weights
    afterwards: learning rates and weights of losses then mean the same for every teacher.
    Equal data, config, device kind and number of threads give equal weights, and so the same id. A fit may be
    resumed on another device or with another number of threads, on frames that were rounded otherwise there.

    Args:
        data: (M, dim), any float dtype, on any device; batches are moved to `device`.
        valid: (V, dim) frames not in `data`, best of other speakers.
        config: how to fit.
        device: where to fit; the device of `data` by default.
        progress: called after every round of lsq, every 10 steps of paper, and whenever valid_rrl was measured.
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
    # What makes a fit this fit, beyond what the method itself checks.
    identity = torch.tensor([*data.shape, config.batch_size, config.round_frames, config.seed])
    if resume_state is None:
        mean_D, scale = _mean_and_scale(data)
    else:
        _check_state(resume_state, identity)
        # Not measured again: other threads and devices sum in another order, and the weights fit to these.
        mean_D, scale = resume_state["mean"], float(resume_state["scale"])
    mean_D = mean_D.to(device)

    def normalized(rows: Tensor) -> Tensor:
        return (rows.to(device, torch.float32) - mean_D) / scale

    started = time.monotonic()
    batches = _Batches(data, batch_size=_frames_per_step(config), seed=config.seed)
    method = _start(config, data, normalized, device)
    history: list[FitProgress] = []
    before_s = 0.0
    if resume_state is not None:
        prefix = f"{config.method}."
        method.load_state_dict(
            {k.removeprefix(prefix): t for k, t in resume_state.items() if k.startswith(prefix)}
        )
        history, before_s = _unpacked(resume_state["history"])
    valid = valid.to(device)

    def elapsed_s() -> float:
        return before_s + time.monotonic() - started

    def note_time() -> None:
        if config.max_seconds is not None:
            method.note_time(elapsed_s() / config.max_seconds)

    note_time()
    while not method.done():
        train_rrl = method.step(normalized(batches.at(method.position)))
        note_time()
        step = method.position
        measure = step % config.valid_every == 0 or method.done()
        if measure or config.method != "paper" or step % _PROGRESS_EVERY_STEPS == 0:
            valid_rrl = None
            if measure:
                valid_rrl, _ = _evaluate(_folded(method.quantizer(), mean_D, scale), valid)
            now = FitProgress(
                step=step,
                steps=method.total,
                phase=method.phase,
                train_rrl=train_rrl,
                valid_rrl=valid_rrl,
                elapsed_s=elapsed_s(),
            )
            if measure:
                history.append(now)
            if progress is not None:
                progress(now)
        if on_state is not None and step % config.state_every == 0 and not method.done():
            state = {f"{config.method}.{name}": tensor for name, tensor in method.state_dict().items()}
            state |= {"identity": identity, "history": _packed(history, elapsed_s())}
            on_state({**state, "mean": mean_D.cpu(), "scale": torch.tensor(scale, dtype=torch.float64)})
    quantizer = _folded(method.quantizer(), mean_D, scale)
    quantizer.set_id_from_weights()
    final_rrl, entropy_N = _evaluate(quantizer, valid)
    return FitResult(
        quantizer=quantizer,
        history=history,
        valid_rrl=final_rrl,
        usage_entropy_bits=entropy_N.tolist(),
        codebook_correlations=quantizer.compute_codebook_correlations().tolist(),
        steps=method.position,
        seconds=elapsed_s(),
    )


class _Method(Protocol):
    """A way of fitting, on normalized frames."""

    @property
    def position(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def phase(self) -> int: ...
    def done(self) -> bool: ...
    def step(self, x_BD: Tensor) -> float: ...
    def note_time(self, used: float) -> None: ...
    def quantizer(self) -> Quantizer: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class _PaperFit:
    """The trainer of the paper's schedule as a method."""

    def __init__(self, trainer: QuantizerTrainer) -> None:
        self._trainer = trainer
        self.phase = trainer.phase
        self.total = trainer.phase_one_iters + trainer.phase_two_iters + 1
        self.done, self.state_dict, self.load_state_dict = (
            trainer.done,
            trainer.state_dict,
            trainer.load_state_dict,
        )

    @property
    def position(self) -> int:
        return self._trainer.cur_iter

    def step(self, x_BD: Tensor) -> float:
        self.phase = self._trainer.phase
        return float(self._trainer.step(x_BD)[0])

    def note_time(self, used: float) -> None:
        """The schedule counts steps."""

    def quantizer(self) -> Quantizer:
        return self._trainer.quantizer


def _frames_per_step(config: FitConfig) -> int:
    return config.batch_size if config.method == "paper" else config.round_frames


def _start(
    config: FitConfig, data: Tensor, normalized: Callable[[Tensor], Tensor], device: torch.device
) -> _Method:
    if config.method == "paper":
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
        return _PaperFit(trainer)
    start = _Batches(data, batch_size=START_FRAMES_PER_ENTRY * config.codebook_size, seed=config.seed).at(0)
    return LsqFit(
        normalized(start),
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        num_frames=len(data),
        round_frames=config.round_frames,
        anneal_rounds=config.anneal_rounds,
        tolerance=config.tolerance,
        predictability=config.predictability,
        ordered=config.ordered,
        seed=config.seed,
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
        folded = Quantizer(
            quantizer.dim,
            quantizer.codebook_size,
            quantizer.num_codebooks,
            logprob_weight=quantizer.logprob_weight * scale**2,
            prefix_weights=quantizer.prefix_weights,
        )
    folded.to(mean_D.device)
    logits_factor = (quantizer.logits_scale * SCALE_SPEED).exp() / scale
    centers_factor = (quantizer.centers_scale * SCALE_SPEED).exp() * scale
    folded.to_logits.weight.copy_(quantizer.to_logits.weight)
    folded.to_logits.bias.copy_(
        quantizer.to_logits.bias - logits_factor * (quantizer.to_logits.weight @ mean_D)
    )
    folded.logits_scale.copy_(logits_factor.log() / SCALE_SPEED)
    folded.centers.copy_(quantizer.centers)
    # In the first codebook, which every sum of the first codebooks has.
    folded.centers[0].add_(mean_D / centers_factor)
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
    rows = [[p.step, p.steps, p.phase, p.train_rrl, p.valid_rrl, p.elapsed_s] for p in history]
    return torch.tensor([*rows, [0, 0, 0, 0.0, 0.0, elapsed_s]], dtype=torch.float64)


def _unpacked(packed: Tensor) -> tuple[list[FitProgress], float]:
    *rows, last = packed.tolist()
    history = [
        FitProgress(
            step=int(step),
            steps=int(steps),
            phase=int(phase),
            train_rrl=train_rrl,
            valid_rrl=valid_rrl,
            elapsed_s=elapsed_s,
        )
        for step, steps, phase, train_rrl, valid_rrl, elapsed_s in rows
    ]
    return history, last[-1]


def _check_state(state: dict[str, Tensor], identity: Tensor) -> None:
    complete = {"identity", "history", "mean", "scale"} <= set(state)
    if not complete or not torch.equal(state["identity"].cpu(), identity):
        raise ValueError(
            "this state is of a fit to other data or with other settings; resume with the same data and "
            "config, or start anew"
        )
