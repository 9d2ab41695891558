"""Settings of a student's training."""

from typing import Annotated, Literal

from pydantic import Field

from mvqkd.workers.section import SPEED_ONLY, Section, Seed

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(ge=0)]


class DistillConfig(Section):
    """The transducer loss plus the codebook loss, and how they are minimized.

    `loss_scale` multiplies the codebook cross-entropy summed over codebooks and frames, as the paper's recipe
    does; 0 trains the same student without distillation. `student_layer` counts from 1. `codebooks` takes only the
    first codes of each frame, which are a code by themselves where the quantizer is ordered. `baseline` makes
    `mvqkd run` train that student too. `average_epochs`: the weights of the last epochs are averaged.
    `cache_mb`: features kept in memory between epochs.
    """

    loss_scale: Scale = 0.1
    student_layer: Positive = 3
    codebooks: Positive | None = None
    max_missing_frames: NotNegative = 4
    delay_frames: NotNegative = 0
    baseline: Annotated[bool, SPEED_ONLY] = True
    ctc_scale: Scale = 0.0
    epochs: Positive = 30
    batch_seconds: Annotated[float, Field(gt=0)] = 120.0
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: NotNegative = 200
    weight_decay: Scale = 0.01
    grad_clip: Annotated[float, Field(gt=0)] = 5.0
    time_masks: NotNegative = 2
    time_mask_s: Scale = 0.2
    freq_masks: NotNegative = 2
    freq_mask_bins: NotNegative = 20
    average_epochs: Positive = 5
    checkpoint_steps: Annotated[Positive, SPEED_ONLY] = 500
    cache_mb: Annotated[NotNegative, SPEED_ONLY] = 1024
    decode_threads: Annotated[Positive, SPEED_ONLY] = 2
    workers: Positive = 1
    gpus_per_worker: Annotated[Annotated[float, Field(ge=0)] | Literal["auto"], SPEED_ONLY] = "auto"
    max_failures: Annotated[NotNegative, SPEED_ONLY] = 3
    seed: Seed = 1
