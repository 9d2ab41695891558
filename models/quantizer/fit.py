"""Fitting a quantizer to a sample of frames in memory.

Shape suffixes: M frames in all, V frames to judge by, B frames of a step, N codebooks, D embedding dimension.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mvqkd.models.quantizer.fit_config import FitConfig, FitProgress
from mvqkd.models.quantizer.fit_state import FitState, Normalization
from mvqkd.models.quantizer.lsq import LsqFit
from mvqkd.models.quantizer.lsq_start import START_FRAMES_PER_ENTRY
from mvqkd.models.quantizer.metrics import ROWS_PER_BLOCK, mean_frame, rrl_of_blocks, usage_entropy_bits
from mvqkd.models.quantizer.paper import PaperFit, QuantizerTrainer
from mvqkd.models.quantizer.quantizer import Quantizer

_PROGRESS_EVERY_STEPS = 10
_ROWS_PER_BLOCK = 65536


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
        on_state: called with tensors (flat names) to resume from, as often as `config.state_every` says.
        resume_state: what `on_state` got, to continue the same fit as if it had never stopped. The caller
            sees to it that the frames are those of the same utterances and teacher.

    Raises:
        ValueError: data or valid is empty, constant, misshapen, or holds NaN or infinity; or the state is of
            a fit to data of another shape or with other settings.
    """
    _check_frames("data", data)
    _check_frames("valid", valid)
    if valid.shape[1] != data.shape[1]:
        raise ValueError(f"valid has {valid.shape[1]} channels, data {data.shape[1]}")
    fit = _Fit(data, valid, config, torch.device(device if device is not None else data.device), resume_state)
    while not fit.done():
        now = fit.step()
        if progress is not None and now is not None:
            progress(now)
        if on_state is not None and fit.position % config.steps_between_states == 0 and not fit.done():
            on_state(fit.state().to_tensors())
    return fit.result()


class _Fit:
    """One fit from its start, or from where it was interrupted, to its end; arguments as of `fit_quantizer`."""

    def __init__(
        self,
        data_MD: Tensor,
        valid_VD: Tensor,
        config: FitConfig,
        device: torch.device,
        resume_state: dict[str, Tensor] | None,
    ) -> None:
        self._config = config
        # What makes a fit this fit, beyond what the method itself checks.
        self._identity = torch.tensor([*data_MD.shape, config.batch_size, config.round_frames, config.seed])
        saved = None
        if resume_state is not None:
            saved = FitState.from_tensors(resume_state, name=config.method, identity=self._identity)
        # Of a resumed fit not measured again: other threads and devices sum in another order, and the weights fit to
        # these.
        self._normalization = (Normalization.of(data_MD) if saved is None else saved.normalization).to(device)
        self._started = time.monotonic()
        frames_per_step = config.batch_size if config.method == "paper" else config.round_frames
        self._batches = _Batches(data_MD, batch_size=frames_per_step, seed=config.seed)
        self._method = _start(config, data_MD, self._normalization)
        self._history: list[FitProgress] = []
        self._before_s = 0.0
        if saved is not None:
            self._method.load_state_dict(saved.method)
            self._history, self._before_s = saved.history, saved.elapsed_s
        self._valid_VD = valid_VD.to(device)
        self._note_time()

    @property
    def position(self) -> int:
        """Steps taken."""
        return self._method.position

    def done(self) -> bool:
        """Whether the method is."""
        return self._method.done()

    def step(self) -> FitProgress | None:
        """One step; what there is to tell of it."""
        config, method = self._config, self._method
        train_rrl = method.step(self._normalization(self._batches.at(method.position)))
        self._note_time()
        measure = method.position % config.steps_between_measurements == 0 or method.done()
        if not measure and config.method == "paper" and method.position % _PROGRESS_EVERY_STEPS:
            return None
        valid_rrl = None
        if measure:
            valid_rrl, _ = _evaluate(self._normalization.folded(method.quantizer()), self._valid_VD)
        now = FitProgress(
            step=method.position,
            steps=method.total,
            phase=method.phase,
            train_rrl=train_rrl,
            valid_rrl=valid_rrl,
            elapsed_s=self._elapsed_s(),
        )
        if measure:
            self._history.append(now)
        return now

    def state(self) -> FitState:
        """What the fit can be resumed from."""
        return FitState(
            name=self._config.method,
            method=self._method.state_dict(),
            identity=self._identity,
            normalization=self._normalization,
            history=self._history,
            elapsed_s=self._elapsed_s(),
        )

    def result(self) -> FitResult:
        """The quantizer as it stands."""
        quantizer = self._normalization.folded(self._method.quantizer())
        quantizer.set_id_from_weights()
        valid_rrl, entropy_N = _evaluate(quantizer, self._valid_VD)
        return FitResult(
            quantizer=quantizer,
            history=self._history,
            valid_rrl=valid_rrl,
            usage_entropy_bits=entropy_N.tolist(),
            codebook_correlations=quantizer.compute_codebook_correlations().tolist(),
            steps=self._method.position,
            seconds=self._elapsed_s(),
        )

    def _elapsed_s(self) -> float:
        return self._before_s + time.monotonic() - self._started

    def _note_time(self) -> None:
        if self._config.max_seconds is not None:
            self._method.note_time(self._elapsed_s() / self._config.max_seconds)


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


def _start(config: FitConfig, data_MD: Tensor, normalization: Normalization) -> _Method:
    if config.method == "paper":
        trainer = QuantizerTrainer(
            data_MD.shape[1],
            config.num_codebooks,
            normalization.mean_D.device,
            config.phase_one_steps,
            config.phase_two_steps,
            config.lr,
            codebook_size=config.codebook_size,
            seed=config.seed,
        )
        return PaperFit(trainer)
    start_frames = START_FRAMES_PER_ENTRY * config.codebook_size
    start_BD = _Batches(data_MD, batch_size=start_frames, seed=config.seed).at(0)
    return LsqFit(
        normalization(start_BD),
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
        num_frames=len(data_MD),
        round_frames=config.round_frames,
        anneal_rounds=config.anneal_rounds,
        tolerance=config.tolerance,
        predictability=config.predictability,
        ordered=config.ordered,
        seed=config.seed,
    )


class _Batches:
    """Shuffled batches, each a function of the seed and the step alone, so that resuming needs no state."""

    def __init__(self, data_MD: Tensor, *, batch_size: int, seed: int) -> None:
        self._data_MD = data_MD
        self._batch_size = min(batch_size, len(data_MD))
        self._per_epoch = len(data_MD) // self._batch_size
        self._seed = seed
        self._epoch = -1
        self._order_M = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Tensor:
        """Frames (B, D) of a step."""
        epoch, position = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            order_M = torch.randperm(len(self._data_MD), generator=generator)
            self._order_M, self._epoch = order_M.to(self._data_MD.device), epoch
        return self._data_MD[self._order_M[position * self._batch_size :][: self._batch_size]]


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


def _evaluate(quantizer: Quantizer, valid_VD: Tensor) -> tuple[float, Tensor]:
    """RRL with the mean of `valid_VD` itself, and usage entropy (N,); no second copy of the frames is made."""
    codes: list[Tensor] = []

    def reconstructed() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in valid_VD.split(ROWS_PER_BLOCK):
            codes.append(quantizer.encode(rows, as_bytes=False))
            yield rows, quantizer.decode(codes[-1])

    figure = rrl_of_blocks(reconstructed(), mean_frame(valid_VD))
    return figure, usage_entropy_bits(torch.cat(codes), quantizer.codebook_size)
