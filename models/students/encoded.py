"""Students that are an encoder of ours with something on top.

Shape suffixes: B utterances, T feature frames, F mel bins, S encoder frames, D encoder channels.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor, nn

from mvqkd.models.decoding.streaming import EncoderStream
from mvqkd.models.features import Fbank, LogMel, feature_extractor
from mvqkd.models.streamed_features import FeatureStream, StreamableLogMel
from mvqkd.models.students.base import Student, StudentFrames
from mvqkd.models.students.config import MEL_FRAMES_PER_S, EncoderConfig
from mvqkd.models.students.subsampling import MEL_FRAMES_SEEN, subsampled_length


class FrameStream(ABC):
    """The encoder's frames of one utterance, as its features come."""

    @abstractmethod
    def feed(self, features_TF: Tensor) -> Tensor:
        """The frames (S, D) that so many more features (T, F) complete; perhaps none."""

    @abstractmethod
    def finish(self) -> Tensor:
        """The frames that are left when the utterance has ended."""


class Encoder(nn.Module, ABC):
    """Log-mel features to frames at a quarter of their rate; `layers` are called once each in a forward pass."""

    layers: nn.ModuleList

    @abstractmethod
    def forward(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """A padded batch to (B, S, D) and int64 (B,): how many frames count."""

    @abstractmethod
    def layer_output(self, raw: object) -> Tensor:
        """What a layer returned, as frames (B, S, D)."""


class StreamableEncoder(Encoder):
    """An encoder that need not see the whole utterance."""

    frames_ahead: int
    """Most later frames that a frame depends on."""

    @abstractmethod
    def stream(self) -> FrameStream:
        """A new utterance, piece by piece."""


class EncodedStudent(Student):
    """What all students with an encoder of ours have in common.

    Args:
        encoder: already built, so that a seed gives it the same weights whatever is on top.
        config: its sizes.
        num_units: different units, blank among them.
    """

    def __init__(self, encoder: Encoder, config: EncoderConfig, num_units: int) -> None:
        super().__init__()
        self.config, self.num_units, self.encoder = config, num_units, encoder
        self.feature_kind = config.features
        self.frames = StudentFrames(
            sample_rate_hz=config.sample_rate_hz,
            frame_rate_hz=config.frame_rate_hz,
            frame_offset_s=config.frame_offset_s,
            min_samples=config.min_samples,
        )

    @cached_property
    def _extractor(self) -> LogMel | Fbank:
        """A student that is to hear audio as it comes cannot subtract the mean of what has not come."""
        if not isinstance(self.encoder, StreamableEncoder):
            return feature_extractor(self.config.features, self.config.sample_rate_hz)
        return StreamableLogMel(self.config.sample_rate_hz)

    @property
    def latency_s(self) -> float:
        """See `Student.latency_s`."""
        if not isinstance(self.encoder, StreamableEncoder):
            return math.inf
        assert isinstance(self._extractor, StreamableLogMel)
        last_mel_s = (MEL_FRAMES_SEEN - 1) / MEL_FRAMES_PER_S - self.frames.frame_offset_s
        ahead_s = self.encoder.frames_ahead / self.frames.frame_rate_hz
        return ahead_s + last_mel_s + self._extractor.latency_s

    def open_stream(self) -> EncoderStream:
        """The encoder's frames of a new utterance, as its samples come.

        Raises:
            ValueError: the encoder sees the whole utterance.
        """
        if not isinstance(self.encoder, StreamableEncoder):
            raise ValueError(
                "this student hears the whole utterance before its first unit; train one with "
                "student.kind: emformer to recognize while audio comes in"
            )
        assert isinstance(self._extractor, StreamableLogMel)
        return _Stream(self._extractor.stream(), self.encoder.stream(), next(self.parameters()).device)

    def num_frames(self, num_feature_frames: int) -> int:
        """See `Student.num_frames`: a quarter of the mel frames, at the ends some fewer."""
        return subsampled_length(num_feature_frames)

    @property
    def num_layers(self) -> int:
        """Layers of the encoder."""
        return self.config.num_layers

    def layer(self, number: int) -> nn.Module:
        """See `Student.layer`."""
        if not 1 <= number <= self.num_layers:
            raise ValueError(f"layer {number} is not one of the student's {self.num_layers} encoder layers")
        return self.encoder.layers[number - 1]

    def layer_channels(self, number: int) -> int:
        """Channels of the encoder."""
        return self.config.encoder_dim

    def layer_output(self, raw: object) -> Tensor:
        """See `Student.layer_output`."""
        return self.encoder.layer_output(raw)


class _Stream:
    """Samples to features to frames."""

    def __init__(self, features: FeatureStream, frames: FrameStream, device: torch.device) -> None:
        self._features, self._frames, self._device = features, frames, device

    @torch.inference_mode()
    def feed(self, samples: Tensor) -> Tensor:
        """See `EncoderStream.feed`."""
        return self._frames.feed(self._features.feed(samples).to(self._device))

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """See `EncoderStream.finish`."""
        last_SD = self._frames.feed(self._features.finish().to(self._device))
        return torch.cat([last_SD, self._frames.finish()])
