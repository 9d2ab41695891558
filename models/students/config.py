"""The student's sizes: plain data without torch, so that a run file is read quickly."""

from dataclasses import dataclass
from typing import ClassVar

SUBSAMPLING = 4
"""Mel frames for one encoder frame."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Size of a Conformer transducer; 25 encoder frames a second (10 ms mel frames, subsampled by 4).

    `units` is `char` or `sentencepiece` (then `vocab_size` pieces, trained on the transcripts).

    Raises:
        ValueError: sizes that do not fit together.
    """

    encoder_dim: int = 144
    num_layers: int = 6
    num_heads: int = 4
    ffn_dim: int = 576
    conv_kernel: int = 15
    dropout: float = 0.1
    predictor_dim: int = 128
    joiner_dim: int = 128
    units: str = "char"
    vocab_size: int = 500

    # Read by pydantic when a run file is checked; plain data, so pydantic is not needed here.
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in (
            "encoder_dim",
            "num_layers",
            "num_heads",
            "ffn_dim",
            "conv_kernel",
            "predictor_dim",
            "joiner_dim",
            "vocab_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.encoder_dim % self.num_heads:
            raise ValueError(
                f"encoder_dim {self.encoder_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if self.predictor_dim % 4:
            raise ValueError(
                f"predictor_dim must be a multiple of 4, not {self.predictor_dim}: its convolution has groups of 4"
            )
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel must be odd, not {self.conv_kernel}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.units not in ("char", "sentencepiece"):
            raise ValueError(f"units must be char or sentencepiece, not {self.units!r}")

    @property
    def frame_rate_hz(self) -> float:
        """Encoder frames a second."""
        from mvqkd.models.features import HOP_SAMPLES  # here, because a run file is read without torch

        return 16_000 / (HOP_SAMPLES * SUBSAMPLING)

    @property
    def frame_offset_s(self) -> float:
        """Time of the center of encoder frame 0: two 3-wide, stride-2 convolutions over mel frames 0 to 6."""
        from mvqkd.models.features import HOP_SAMPLES

        return 3 * HOP_SAMPLES / 16_000
