"""How a quantizer is fitted, and how far a fit is: plain data without torch, so that a run file is read quickly."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

_MEASUREMENTS = 20
"""Of a fit, and kept states, where `valid_every` and `state_every` say nothing."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What is fitted and by which schedule: keys of the run file's section `quantizer`, declared here alone.

    A bad value raises ValueError when the settings are built; the message begins with the name.

    Attributes:
        num_codebooks: codebooks of the result; with 256 entries, bytes per frame.
        codebook_size: entries per codebook: 4, 16, 64 or 256.
        method: "lsq" alternates exact least squares and code search until it has converged (see `lsq.py`); "paper"
            is the schedule of arXiv 2211.00508 (see `paper.py`).
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

    # Read by pydantic when a run file is checked; plain data, so pydantic is not needed here.
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

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
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0, and finite")
        if not 0 <= self.predictability < math.inf:
            raise ValueError(f"predictability={self.predictability} must be a number from 0")

    @property
    def expected_steps(self) -> int:
        """Steps (paper) or about how many rounds (lsq) a fit takes."""
        if self.method == "paper":
            return self.phase_one_steps + self.phase_two_steps
        return 2 * self.anneal_rounds


@dataclass(frozen=True, kw_only=True)
class FitConfig(FitSettings):
    """How to fit: the settings, and how this fit is run.

    Attributes:
        seed: fixes initial weights, order of the data and all else that is random.
        valid_every: steps or rounds between measurements of the RRL on the validation frames; None is some 20
            measurements in all.
        state_every: steps or rounds between calls of `on_state`; None is some 20 in all.
    """

    seed: int = 0
    valid_every: int | None = None
    state_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, ("valid_every", "state_every"))

    @property
    def steps_between_measurements(self) -> int:
        """`valid_every`, or what None of it means."""
        return self.valid_every or max(1, self.expected_steps // _MEASUREMENTS)

    @property
    def steps_between_states(self) -> int:
        """`state_every`, or what None of it means."""
        return self.state_every or max(1, self.expected_steps // _MEASUREMENTS)


def _check_counts(config: FitSettings, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


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
