"""How a quantizer is fitted, how far a fit is, and what comes of it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # Not at run time: a run file is checked with these settings, and without torch.
    from mvqkd.models.quantizer.quantizer import Quantizer


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What is fitted and by which schedule: keys of the run file's section `quantizer`, declared here alone.

    A bad value raises ValueError with its name when the settings are built.

    Attributes:
        num_codebooks: codebooks of the result; with 256 entries, bytes per frame.
        codebook_size: entries per codebook, a power of two; for "paper" 4, 16, 64 or 256.
        method: "lsq" alternates exact least squares and code search until it has converged (see `lsq.py`); "paper"
            is the schedule of arXiv 2211.00508 (see `trainer.py`).
        predictability: lsq: relative reconstruction loss that one nat of a code's -log p is worth. 0 fits to
            distortion alone; more makes codes that are easier to predict and a little less exact.
        ordered: lsq: the first 1, 2, 4, ... codebooks are codes by themselves.
        round_frames: lsq: frames of a round, at most.
        anneal_rounds: lsq: rounds until the noise is gone; then it goes on until it has converged.
        tolerance: lsq: progress, relative, that counts as none.
        max_seconds: lsq: time limit, after which the fit ends as it is. Where it looks too short for all rounds, they
            take fewer frames, and the result depends on the machine.
        batch_size: paper: frames per step.
        phase_one_steps: paper: steps with square-root codebooks (one more is taken, as in the reference).
        phase_two_steps: paper: steps with full codebooks.
        lr: paper: initial learning rate.
    """

    num_codebooks: int
    codebook_size: int = 256
    method: Literal["lsq", "paper"] = "lsq"
    predictability: float = 0.0015
    ordered: bool = False
    round_frames: int = 32768
    anneal_rounds: int = 60
    tolerance: float = 0.001
    max_seconds: float | None = None
    batch_size: int = 512
    phase_one_steps: int = 10000
    phase_two_steps: int = 10000
    lr: float = 0.005

    def __post_init__(self) -> None:
        if self.method not in ("lsq", "paper"):
            raise ValueError(f'method={self.method!r}; the methods are "lsq" and "paper"')
        if self.codebook_size not in (4, 16, 64, 256):
            raise ValueError(f"codebook_size={self.codebook_size}; use 4, 16, 64 or 256")
        if self.ordered and self.method != "lsq":
            raise ValueError('ordered codebooks need method="lsq"; the schedule of the paper knows no order')
        counts = (
            "num_codebooks",
            "round_frames",
            "anneal_rounds",
            "batch_size",
            "phase_one_steps",
            "phase_two_steps",
        )
        _check_counts(self, counts)
        for name in ("lr", "tolerance", "max_seconds"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.predictability < math.inf:
            raise ValueError(f"predictability={self.predictability} must be a number from 0")


@dataclass(frozen=True, kw_only=True)
class FitConfig(FitSettings):
    """How to fit: the settings, and how this fit is run.

    Attributes:
        seed: fixes initial weights, order of the data and all else that is random.
        valid_every: steps or rounds between measurements of the RRL on the validation frames.
        state_every: steps or rounds between calls of `on_state`.
    """

    seed: int = 0
    valid_every: int = 500
    state_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, ("valid_every", "state_every"))


def _check_counts(config: FitSettings, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """Where a fit stands after `step` of `steps` steps (lsq: rounds, whose number is a guess until it is over)."""

    step: int
    steps: int
    phase: int
    """paper: of its two; lsq: 1 while there is noise, then 2."""
    train_rrl: float
    """Of the last batch, with the short search of a training step."""
    valid_rrl: float | None
    """With the full search, if it was measured at this step."""
    elapsed_s: float
    """Including the time before a resumption."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A fitted quantizer (eval mode, on the device of the fit) and what is known of it."""

    quantizer: "Quantizer"
    history: list[FitProgress]
    """The steps at which valid_rrl was measured."""
    valid_rrl: float
    """sum ||x - x_hat||^2 / sum ||x - mean||^2 with the mean of the validation frames themselves."""
    usage_entropy_bits: list[float]
    """Per codebook, on the validation frames."""
    codebook_correlations: list[list[float]]
    steps: int
    seconds: float
