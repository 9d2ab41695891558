"""The first layers of our encoders: mel frames to a quarter of their rate.

Shape suffixes: B utterances, T mel frames, F mel bins; C is a convolution's channels.
"""

from typing import overload

from torch import Tensor, nn

from mvqkd.models.features import NUM_MEL_BINS

MEL_FRAMES_SEEN = 7
"""Mel frames that one frame of the output is made of: two 3-wide, stride-2 convolutions."""


# About the mean of fbank over speech at usual loudness, and its standard deviation, for which log-mel takes 4 as well.
FBANK_MEAN, FBANK_SCALE = -7.5, 4.0


@overload
def subsampled_length(num_mel_frames: int) -> int: ...


@overload
def subsampled_length(num_mel_frames: Tensor) -> Tensor: ...


def subsampled_length(num_mel_frames: Tensor | int) -> Tensor | int:
    """Encoder frames of an utterance of `num_mel_frames`; 0 when it is shorter than 7 mel frames."""
    if isinstance(num_mel_frames, int):
        return max(0, ((num_mel_frames - 1) // 2 - 1) // 2)
    return (((num_mel_frames - 1) // 2 - 1) // 2).clamp_min(0)


class Subsampling(nn.Module):
    """80 mel bins at 100 Hz to `dim` at 25 Hz by two strided convolutions (no padding in time).

    Kaldi's fbank (`features` is `fbank`) is not normalized over the utterance: it is shifted and scaled by constants,
    to about the range of log-mel.
    """

    def __init__(self, dim: int, channels: int = 32, *, features: str = "log_mel") -> None:
        super().__init__()
        self._is_fbank = features == "fbank"
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, stride=2),
            nn.SiLU(),
        )
        bins = subsampled_length(NUM_MEL_BINS)
        self.project = nn.Linear(channels * bins, dim)

    def forward(self, features_BTF: Tensor) -> Tensor:
        """(B, T, 80) to (B, subsampled_length(T), dim)."""
        if self._is_fbank:
            features_BTF = (features_BTF - FBANK_MEAN) / FBANK_SCALE
        x_BCTF = self.conv(features_BTF.unsqueeze(1))
        return self.project(x_BCTF.permute(0, 2, 1, 3).flatten(2))
