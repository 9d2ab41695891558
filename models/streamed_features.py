"""Log-mel features of a student that hears audio as it comes: the same frames, however the audio is cut into chunks.

Shape suffixes: T frames, F bins.
"""

import torch
from torch import Tensor

from mvqkd.models.features import DEVIATION, NUM_MEL_BINS, LogMel
from mvqkd.models.students.config import MEL_FRAMES_PER_S

PRIOR_MEAN = -6.0
"""About the mean of log-mel over speech; what a stream begins with."""
PRIOR_FRAMES = 100
"""Frames that it counts for."""


class RunningMean:
    """Normalizes each frame by the mean of those up to it; before there are many, by that of speech as well."""

    def __init__(self) -> None:
        self._sum_F = torch.full((NUM_MEL_BINS,), PRIOR_MEAN * PRIOR_FRAMES, dtype=torch.float64)
        self._count = PRIOR_FRAMES

    def __call__(self, frames_TF: Tensor) -> Tensor:
        """The next frames of an utterance, normalized."""
        if not len(frames_TF):
            return frames_TF
        # In double precision, so that the place where chunks meet changes no sum.
        sums_TF = frames_TF.double().cumsum(dim=0) + self._sum_F
        counts_T1 = self._count + torch.arange(1, len(frames_TF) + 1, dtype=torch.float64).unsqueeze(1)
        self._sum_F, self._count = sums_TF[-1], self._count + len(frames_TF)
        return ((frames_TF - sums_TF / counts_T1) / DEVIATION).float()


class StreamableLogMel(LogMel):
    """`LogMel` that knows nothing of what comes later: normalized by a running mean, and not by the utterance's."""

    def __call__(self, waveform: Tensor) -> Tensor:
        """float32 waveform (num_samples,) in [-1, 1] to (frames, 80)."""
        return RunningMean()(self.frames(waveform))

    def stream(self) -> "FeatureStream":
        """A new utterance, chunk by chunk."""
        return FeatureStream(self)

    @property
    def half_window_hops(self) -> int:
        """Whole hops of 10 ms that cover half of a window, with the zeros that fill it up to a power of 2."""
        return self.mel.n_fft // 2 // self.hop_samples + 1

    @property
    def latency_s(self) -> float:
        """From the center of a frame to the audio that has to have come in for it."""
        return self.half_window_hops / MEL_FRAMES_PER_S


class FeatureStream:
    """The frames of one utterance, as its samples come.

    Frames are made of a piece of the waveform that begins at a whole hop; those whose window reaches beyond the piece
    are left out, unless the utterance ends there.
    """

    def __init__(self, log_mel: StreamableLogMel) -> None:
        self._log_mel, self._normalize = log_mel, RunningMean()
        self._half = log_mel.half_window_hops
        self._kept = torch.zeros(0)  # samples, of which the first is the center of a frame
        self._skip = 0  # frames of them that are out already

    def feed(self, samples: Tensor) -> Tensor:
        """The frames (T, 80) that so many more float32 samples (num_samples,) complete; perhaps none."""
        self._kept = torch.cat([self._kept, samples.float().cpu()])
        complete = self._kept.numel() // self._log_mel.hop_samples - self._half + 1
        if complete <= self._skip:
            return torch.zeros(0, NUM_MEL_BINS)
        return self._take(complete)

    def finish(self) -> Tensor:
        """The last frames, whose windows reach beyond the end of the audio."""
        complete = self._kept.numel() // self._log_mel.hop_samples + 1
        if self._kept.numel() <= self._log_mel.mel.n_fft // 2 or complete <= self._skip:
            return torch.zeros(0, NUM_MEL_BINS)
        return self._take(complete)

    def _take(self, complete: int) -> Tensor:
        frames_TF = self._log_mel.frames(self._kept)[self._skip : complete]
        # The next frame is the one after these; its window begins half a window before its center.
        drop = max(0, complete - self._half)
        self._kept = self._kept[drop * self._log_mel.hop_samples :]
        self._skip = complete - drop
        return self._normalize(frames_TF)
