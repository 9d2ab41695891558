"""Ours and `multi_quantization`, the reference of the paper.

Shape suffixes: M frames in all, V held out, B frames of a batch, D embedding dimension, K first codebooks.
"""

import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.quantizer.fitting import FitOptions, Fitted
from benchmarks.quantizer.frames import evenly
from benchmarks.quantizer.gauges import seconds
from mvqkd.models.quantizer import FitConfig, FitResult, QuantizerTrainer, fit_quantizer

PEER_SIZES = (1, 2, 4, 8, 16, 32)
_BATCH_SIZE = 512
_VALID_FRAMES = 4096
_MEASURED_TIMES = 8
_MEASURED_EVERY_ROUNDS = 5
_PEER_FRAMES_AT_ONCE = 256
_WARM_STEPS = 3
_TIMED_STEPS = 3


class Trainer(Protocol):
    """A trainer of the paper's schedule, ours or the reference's."""

    def step(self, x: Tensor) -> Any:
        """One step on frames (B, D)."""

    def done(self) -> bool:
        """Whether both phases are complete."""


def fit_ours(train_MD: Tensor, options: FitOptions, *, ordered: bool) -> Fitted:
    """Our default method, for as long as the budget lasts."""
    config = FitConfig(
        num_codebooks=options.num_bytes,
        method="lsq",
        ordered=ordered,
        seed=options.seed,
        max_seconds=options.budget_s,
        valid_every=_MEASURED_EVERY_ROUNDS,
    )
    fitted = _fit_with(config, train_MD, options)
    return replace(fitted, encode_fast=lambda x_BD: fitted.encode(x_BD, 1, products="int8"))


def fit_ours_paper(train_MD: Tensor, options: FitOptions) -> Fitted:
    """Our implementation of the paper's schedule, as many steps as fill the budget."""
    steps, calibration_s = steps_within(
        options.budget_s,
        train_MD,
        lambda one, two: QuantizerTrainer(
            train_MD.shape[1], options.num_bytes, options.device, one, two, seed=options.seed
        ),
    )
    config = FitConfig(
        num_codebooks=options.num_bytes,
        method="paper",
        phase_one_steps=steps,
        phase_two_steps=steps,
        seed=options.seed,
        valid_every=max(1, 2 * steps // _MEASURED_TIMES),
    )
    fitted = _fit_with(config, train_MD, options)
    fitted.details.update(steps_per_phase=steps, calibration_s=calibration_s)
    return fitted


def fit_peer(train_MD: Tensor, options: FitOptions) -> Fitted:
    """The reference, as many steps as fill the budget."""
    import multi_quantization

    def trainer_of(one: int, two: int) -> Any:
        return multi_quantization.QuantizerTrainer(
            train_MD.shape[1], options.num_bytes, options.device, one, two
        )

    steps, calibration_s = steps_within(options.budget_s, train_MD, trainer_of)
    # It draws its initial weights from torch and its number of search passes from Python.
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    trainer = trainer_of(steps, steps)

    def train() -> None:
        for batch_BD in _batches(train_MD, options.seed):
            if trainer.done():
                return
            trainer.step(batch_BD)

    fit_s = seconds(train, options.device)
    quantizer = trainer.get_quantizer().eval()
    return Fitted(
        encode=lambda x_BD: peer_encode(quantizer, x_BD),
        decode=torch.no_grad()(quantizer.decode),
        fit_s=fit_s,
        details={"steps_per_phase": steps, "calibration_s": calibration_s},
        encode_frames=options.peer_encode_frames,
        slow=True,
    )


def peer_refuses(dim: int, num_bytes: int) -> str | None:
    """The reference takes powers of two only."""
    if num_bytes in PEER_SIZES:
        return None
    return f"it takes {', '.join(map(str, PEER_SIZES))} codebooks only"


@torch.no_grad()
def peer_encode(quantizer: Any, x_BD: Tensor) -> Tensor:
    """Its `encode` with its default 5 iterations; in blocks, for it gathers centers for each frame."""
    return torch.cat([quantizer.encode(rows_BD) for rows_BD in x_BD.split(_PEER_FRAMES_AT_ONCE)])


def steps_within(
    budget_s: float, train_MD: Tensor, trainer_of: Callable[[int, int], Trainer]
) -> tuple[int, float]:
    """How many steps of each phase take `budget_s` in all, and the seconds that it took to find out.

    The learning rates depend on the number of steps, so it must be known before the first. Finding out is
    not counted as fitting.
    """
    step_s = []

    def time_both() -> None:
        for phase in (1, 2):
            # Phase two begins after the second step, where phase one is one step long.
            trainer = trainer_of(1_000_000 if phase == 1 else 1, 1_000_000)
            batches = _batches(train_MD, phase)
            times = [
                seconds(lambda trainer=trainer: trainer.step(next(batches)), train_MD.device)  # noqa: B023
                for _ in range(_WARM_STEPS + _TIMED_STEPS)
            ]
            step_s.append(statistics.median(times[_WARM_STEPS:]))

    calibration_s = seconds(time_both, train_MD.device)
    return max(1, int(budget_s / sum(step_s))), calibration_s


def _batches(train_MD: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches without end, all frames in a new order each time around."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows_B in torch.randperm(len(train_MD), generator=generator).split(_BATCH_SIZE):
            yield train_MD[rows_B.to(train_MD.device)]


def _fit_with(config: FitConfig, train_MD: Tensor, options: FitOptions) -> Fitted:
    """A twentieth of the train frames is held out: the last, and so of other speakers than most."""
    held_out = max(1, len(train_MD) // 20)
    fit_MD, valid_VD = train_MD.split([len(train_MD) - held_out, held_out])
    valid_VD = valid_VD[evenly(_VALID_FRAMES, held_out).to(valid_VD.device)]
    results: list[FitResult] = []
    fit_s = seconds(
        lambda: results.append(fit_quantizer(fit_MD, valid=valid_VD, config=config, device=options.device)),
        options.device,
    )
    result = results[0]
    return Fitted(
        encode=result.quantizer.encode,
        decode=torch.no_grad()(result.quantizer.decode),
        decode_first=torch.no_grad()(
            lambda codes_BK: result.quantizer.first(codes_BK.shape[1]).decode(codes_BK)
        ),
        fit_s=fit_s,
        history=[(p.elapsed_s, p.valid_rrl) for p in result.history if p.valid_rrl is not None],
        details={"steps": result.steps, "held_out_rrl": result.valid_rrl},
    )
