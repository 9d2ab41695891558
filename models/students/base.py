"""What any student is to training and decoding, ours or one's own.

Shape suffixes: B utterances, T feature frames, F feature bins, S the student's frames, C channels, U units.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from mvqkd.models.features import Fbank, LogMel, feature_extractor
from mvqkd.models.students.config import MEL_FRAMES_PER_S


@dataclass(frozen=True, kw_only=True)
class StudentFrames:
    """When a student's frames are, and what audio it takes.

    Attributes:
        sample_rate_hz: of the waveform.
        frame_rate_hz: frames a second that it puts out.
        frame_offset_s: time of the center of frame 0.
        min_samples: waveform samples that give one frame.
    """

    sample_rate_hz: int = 16_000
    frame_rate_hz: float = float(MEL_FRAMES_PER_S)
    frame_offset_s: float = 0.0
    min_samples: int = 400


@dataclass(frozen=True, kw_only=True)
class StudentLoss:
    """A student's own loss of a batch, in nats, summed over the batch.

    Attributes:
        total: to be minimized.
        parts: what it is made of, each detached and before its factor.
        num_frames: the student's frames of all utterances, without padding.
    """

    total: Tensor
    parts: dict[str, Tensor]
    num_frames: int


class Student(nn.Module, ABC):
    """A model that recognizes speech, some layer of which can be distilled into.

    A subclass says when its frames are (`frames`, `num_frames`), keeps its layers in `layers`, each with `channels`
    output channels, and gives `loss` and `greedy`. What is here fits a student that puts out one frame for each
    log-mel frame of 10 ms and whose layers return batch-first tensors, perhaps as the first of a tuple; another one
    overrides it. `ctc.py` has the loss and the search of students that are trained by CTC alone.
    """

    frames: StudentFrames = StudentFrames()
    feature_kind: str = "log_mel"
    layers: nn.ModuleList
    channels: int

    @cached_property
    def _extractor(self) -> LogMel | Fbank:
        return feature_extractor(self.feature_kind, self.frames.sample_rate_hz)

    @property
    def feature_rate_hz(self) -> float:
        """Frames of `features` a second."""
        return float(MEL_FRAMES_PER_S)

    def features(self, waveform_T: Tensor) -> Tensor:
        """What the student reads of a float32 waveform (num_samples,) at its rate, on the CPU: float32 (T, F)."""
        return self._extractor(waveform_T)

    def mask_value(self, features_TF: Tensor) -> float:
        """What stands where SpecAugment masks features (T, F): their mean, which is 0 of log-mel."""
        return 0.0 if self.feature_kind == "log_mel" else float(features_TF.mean())

    @property
    def latency_s(self) -> float:
        """Algorithmic latency of a student that recognizes while it hears: the longest time from the center of a frame
        to the end of the audio that has to have come in for it. Infinite for one that hears the whole utterance."""
        return math.inf

    def num_frames(self, num_feature_frames: int) -> int:
        """The student's frames for so many of `features`; 0 where they are too few for one."""
        return num_feature_frames

    @property
    def num_layers(self) -> int:
        """Layers that can be distilled into."""
        return len(self.layers)

    def layer(self, number: int) -> nn.Module:
        """The module whose output is that of a layer, counted from 1; it is called once in a forward pass."""
        if not 1 <= number <= self.num_layers:
            raise ValueError(f"layer {number} is not one of the student's {self.num_layers} layers")
        return self.layers[number - 1]

    def layer_channels(self, number: int) -> int:
        """Channels of a layer's output."""
        return self.channels

    def layer_output(self, raw: object) -> Tensor:
        """What a layer's module returned, as frames (B, S, C)."""
        output = raw[0] if isinstance(raw, tuple) else raw
        assert isinstance(output, Tensor), "a layer that returns something else overrides layer_output"
        return output

    @abstractmethod
    def loss(
        self, features_BTF: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> StudentLoss:
        """The loss of a padded batch.

        Args:
            features_BTF: float32, padded with zeros; `lengths_B`, int64, says how many frames count.
            units_BU: int64, padded with anything; `unit_lengths_B`, int64, says how many count.
        """

    def encode(self, features_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """Run the layers on a padded batch, for what is distilled from speech without transcripts.

        Returns:
            int64 (B,): how many of the student's frames count.

        Raises:
            ValueError: the student does not say how.
        """
        raise ValueError(
            f"{type(self).__name__} has no `encode`, which runs its layers without a loss: speech without transcripts "
            "(distill.untranscribed, distill.pretrain) needs it"
        )

    @abstractmethod
    def greedy(self, features_BTF: Tensor, lengths_B: Tensor) -> list[list[int]]:
        """Units of each utterance of a padded batch, blanks left out, the most probable one at every step."""

    def beam(
        self, features_BTF: Tensor, lengths_B: Tensor, *, beam: int, modified: bool = False
    ) -> list[list[int]]:
        """Units of each utterance of a padded batch, by a search that keeps `beam` hypotheses.

        Args:
            modified: with at most one unit in a frame, as other programs search transducers.

        Raises:
            ValueError: the student does not say how.
        """
        raise ValueError(
            f"{type(self).__name__} has no `beam`, so it cannot be searched otherwise than by decode.search greedy"
        )
