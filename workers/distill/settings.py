"""Settings of a student's training."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mvqkd.workers.section import SPEED_ONLY, PathText, Section, Seed

MAIN = "codebook"
"""Name of the head that learns from the run's own table."""
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Distance = Literal["l1", "l2", "cosine"]

_SINCE_0_3 = (
    "joint", "label_smoothing", "per_codebook", "distance", "targets", "transcribed_hours", "untranscribed",
    "untranscribed_from", "pretrain", "init", "noise", "noise_share", "noise_snr_db", "accumulate", "precision", "ema",
    "valid_hours",
)  # fmt: skip
"""Left out of records and digests where they have their defaults, so that those of before there were any stay."""


class UntranscribedTable(Section):
    """An index table that is used without its transcripts; `root` is the `corpus.root` of its audio, as the run's."""

    table: PathText
    root: PathText | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"table": value} if isinstance(value, str) else value


class TargetConfig(Section):
    """One more thing that a layer of the student is to predict.

    `table` is the path of an index table of the same cuts (codes or embeddings of another teacher, or another layer);
    without it the run's own teacher runs in every training step and its embeddings are the targets, or with `quantized`
    the codes that the run's quantizer makes of them. The others are as in `distill`.
    """

    table: PathText | None = None
    quantized: bool = False
    student_layer: Positive = 3
    scale: Annotated[float, Field(gt=0)] = 0.1
    codebooks: Positive | None = None
    delay_frames: NotNegative = 0
    max_missing_frames: NotNegative = 4
    joint: bool = False
    label_smoothing: Share = 0.0
    per_codebook: bool = False
    distance: Distance = "l2"

    @property
    def live(self) -> bool:
        """Whether the teacher runs in the training step."""
        return self.table is None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.live and self.codebooks is not None:
            raise ValueError(
                "codebooks is of the codes in a table; a target without a table has all, so leave it out"
            )
        if not self.live and self.quantized:
            raise ValueError(
                "quantized is of a teacher in the training step; a table says itself what it holds"
            )
        return self


class DistillConfig(Section):
    """The student's own loss plus the losses of what it is to predict, and how they are minimized.

    `loss_scale` multiplies the codebook cross-entropy summed over codebooks and frames, as the paper's recipe
    does (with `per_codebook` it is divided by the number of codebooks, so that a scale carries over from 4 to 16);
    0 trains the same student without distillation. `student_layer` counts from 1. `codebooks` takes only the
    first codes of each frame, which are a code by themselves where the quantizer is ordered. `joint` predicts each code
    from those before it too. `distance` counts where the table holds embeddings. `targets` are further losses.
    `untranscribed`: hours of speech without transcripts for each hour with, out of the table and of
    `untranscribed_from`. `pretrain` trains on codes alone; `init` starts from the student in that folder. `baseline`
    makes `mvqkd run` train the student without codes too. `average_epochs`: the weights of the last epochs are
    averaged, with `ema` those of all steps. `valid_hours` are held out, by speaker, to keep the best weights.
    `cache_mb`: features kept in memory between epochs.
    """

    loss_scale: Scale = 0.1
    student_layer: Positive = 3
    codebooks: Positive | None = None
    max_missing_frames: NotNegative = 4
    delay_frames: NotNegative = 0
    joint: bool = False
    label_smoothing: Share = 0.0
    per_codebook: bool = False
    distance: Distance = "l2"
    targets: dict[str, TargetConfig] = Field(default={})
    transcribed_hours: Annotated[float, Field(gt=0)] | None = None
    untranscribed: Scale = 0.0
    untranscribed_from: list[UntranscribedTable] = Field(default=[])
    pretrain: bool = False
    init: PathText | None = None
    baseline: Annotated[bool, SPEED_ONLY] = True
    ctc_scale: Scale = 0.0
    epochs: Positive = 30
    batch_seconds: Annotated[float, Field(gt=0)] = 120.0
    accumulate: Positive = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: NotNegative = 200
    weight_decay: Scale = 0.01
    grad_clip: Annotated[float, Field(gt=0)] = 5.0
    time_masks: NotNegative = 2
    time_mask_s: Scale = 0.2
    freq_masks: NotNegative = 2
    freq_mask_bins: NotNegative = 20
    noise: PathText | None = None
    noise_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    noise_snr_db: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(default=[5.0, 20.0])
    average_epochs: Positive = 5
    ema: Share = 0.0
    valid_hours: Scale = 0.0
    checkpoint_steps: Annotated[Positive, SPEED_ONLY] = 500
    cache_mb: Annotated[NotNegative, SPEED_ONLY] = 1024
    decode_threads: Annotated[Positive, SPEED_ONLY] = 2
    decode_processes: Annotated[NotNegative, SPEED_ONLY] = 0
    workers: Positive = 1
    gpus_per_worker: Annotated[Annotated[float, Field(ge=0)] | Literal["auto"], SPEED_ONLY] = "auto"
    max_failures: Annotated[NotNegative, SPEED_ONLY] = 3
    seed: Seed = 1

    @property
    def distils(self) -> bool:
        """Whether there is anything to predict but the transcripts."""
        return self.loss_scale > 0 or bool(self.targets)

    def without_codes(self) -> "DistillConfig":
        """The same training of the same student, with its own loss alone."""
        return self.model_copy(
            update={"loss_scale": 0.0, "targets": {}, "untranscribed": 0.0, "untranscribed_from": []}
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrain and not self.distils:
            raise ValueError(
                "pretrain trains on codes alone, so loss_scale must be above 0, or targets be named"
            )
        if self.pretrain and (self.untranscribed or self.valid_hours or self.transcribed_hours):
            raise ValueError(
                "pretrain takes every row without its transcript: leave untranscribed, transcribed_hours and "
                "valid_hours out"
            )
        if self.untranscribed_from and not (self.untranscribed or self.pretrain):
            raise ValueError(
                "untranscribed_from names tables of which nothing would be read: set untranscribed to the hours of "
                "them for each hour with transcripts, such as 1.0"
            )
        if self.untranscribed and not self.distils:
            raise ValueError(
                "untranscribed: speech without transcripts teaches codes only, and loss_scale is 0; raise it, or set "
                "untranscribed to 0"
            )
        for name in self.targets:
            if name == MAIN or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(
                    f"targets.{name}: a name has letters, digits, - and _ only, and {MAIN} is that of the run's own "
                    "table; take another one"
                )
        low, high = self.noise_snr_db
        if low > high:
            raise ValueError(f"noise_snr_db is from {low} to {high} dB; the lower one comes first")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        for name in _SINCE_0_3:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content
