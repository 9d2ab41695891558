"""The student's sizes: plain data without torch, so that a run file is read quickly."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

SUBSAMPLING = 4
"""Feature frames for one encoder frame."""
MEL_FRAMES_PER_S = 100
"""Feature frames a second, at any sample rate."""
_LOWEST_RATE_HZ = 8_000


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Size of a Conformer transducer; 25 encoder frames a second (10 ms mel frames, subsampled by 4).

    `sample_rate_hz` is of the audio that the student takes, whatever its teacher takes; from 8,000, and a multiple of
    100 for whole hops of 10 ms. `features` is `log_mel`, normalized over the utterance, or `fbank`, Kaldi's, which
    Lhotse, icefall and sherpa-onnx compute too and whose frames lie 5 ms later. `units` is `char` or
    `sentencepiece` (then `vocab_size` pieces, trained on the transcripts).

    Raises:
        ValueError: sizes that do not fit together; the message begins with the field's name.
    """

    sample_rate_hz: int = 16_000
    features: str = "log_mel"
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
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        check_sample_rate(self.sample_rate_hz)
        if self.features not in ("log_mel", "fbank"):
            raise ValueError(f"features must be log_mel or fbank, not {self.features!r}")
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
        return MEL_FRAMES_PER_S / SUBSAMPLING

    @property
    def frame_offset_s(self) -> float:
        """Time of the center of encoder frame 0: two 3-wide, stride-2 convolutions over mel frames 0 to 6."""
        return (3.5 if self.features == "fbank" else 3.0) / MEL_FRAMES_PER_S

    @property
    def min_samples(self) -> int:
        """Waveform samples that give one encoder frame (7 mel frames)."""
        hop = self.sample_rate_hz // MEL_FRAMES_PER_S
        return 7 * hop - hop // 2 if self.features == "fbank" else 6 * hop

    def to_dict(self) -> dict[str, Any]:
        """For records and digests. What was not to choose once is left out where it is as it was, so that they stay."""
        content = asdict(self)
        if self.features == "log_mel":
            del content["features"]
        if self.sample_rate_hz == 16_000:
            del content["sample_rate_hz"]
        return content


def check_sample_rate(sample_rate_hz: int) -> None:
    """Raises ValueError for a rate that gives no mel frames every 10 ms, or hardly any speech."""
    if sample_rate_hz < _LOWEST_RATE_HZ or sample_rate_hz % MEL_FRAMES_PER_S:
        raise ValueError(
            f"sample_rate_hz {sample_rate_hz} gives no mel frames every 10 ms: take a multiple of {MEL_FRAMES_PER_S} "
            f"from {_LOWEST_RATE_HZ}, such as 8000 or 16000"
        )
