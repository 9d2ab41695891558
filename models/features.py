"""Features of the student: log-mel or Kaldi's fbank, each of 80 bins, 25 ms windows every 10 ms.

Shape suffixes: T frames, F bins.
"""

import torch
import torchaudio
from torch import Tensor
from torchaudio.compliance import kaldi

from mvqkd.models.students.config import MEL_FRAMES_PER_S, check_sample_rate

NUM_MEL_BINS = 80
DEVIATION = 4.0
"""About the standard deviation of log-mel over speech; a constant keeps short utterances comparable."""


class LogMel:
    """Waveform to log-mel, mean-normalized over the utterance.

    Frame t is centered on sample t * hop, where a hop is 10 ms; n samples give n // hop + 1 frames. Not a module, so
    that a student that has one keeps its state dict.

    Args:
        sample_rate_hz: of the waveform; the bins go up to half of it.

    Raises:
        ValueError: a rate below 8 kHz, or one whose hop is not whole.
    """

    def __init__(self, sample_rate_hz: int = 16_000) -> None:
        check_sample_rate(sample_rate_hz)
        window = round(0.025 * sample_rate_hz)
        self.hop_samples = sample_rate_hz // MEL_FRAMES_PER_S
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate_hz,
            n_fft=1 << (window - 1).bit_length(),
            win_length=window,
            hop_length=self.hop_samples,
            n_mels=NUM_MEL_BINS,
        )

    def __call__(self, waveform: Tensor) -> Tensor:
        """float32 waveform (num_samples,) in [-1, 1] to (frames, 80)."""
        log_mel_TF = self.frames(waveform)
        return (log_mel_TF - log_mel_TF.mean(dim=0)) / DEVIATION

    def frames(self, waveform: Tensor) -> Tensor:
        """As `__call__` before normalization: each frame is of the 25 ms around its center alone."""
        return self.mel(waveform).clamp_min(1e-7).log().T


class Fbank:
    """Waveform to Kaldi's filter bank energies, as `Fbank()` of Lhotse, icefall and sherpa-onnx compute them.

    No dither, pre-emphasis of 0.97, Povey's window, edges mirrored, bins from 20 Hz to 400 Hz below half the rate,
    natural logarithm, no normalization. Frame t is centered 5 ms after sample t * hop, where a hop is 10 ms; n samples
    give n / hop frames, rounded half up. Not a module, as `LogMel`.

    Args:
        sample_rate_hz: of the waveform.

    Raises:
        ValueError: a rate below 8 kHz, or one whose hop is not whole.
    """

    def __init__(self, sample_rate_hz: int = 16_000) -> None:
        check_sample_rate(sample_rate_hz)
        self._sample_rate_hz = float(sample_rate_hz)

    def __call__(self, waveform: Tensor) -> Tensor:
        """float32 waveform (num_samples,) in [-1, 1] to (frames, 80)."""
        return kaldi.fbank(
            waveform.unsqueeze(0),
            num_mel_bins=NUM_MEL_BINS,
            sample_frequency=self._sample_rate_hz,
            high_freq=-400.0,
            dither=0.0,
            snip_edges=False,
        )


def feature_extractor(kind: str, sample_rate_hz: int) -> LogMel | Fbank:
    """`LogMel` for `log_mel`, `Fbank` for `fbank`."""
    return Fbank(sample_rate_hz) if kind == "fbank" else LogMel(sample_rate_hz)


def spec_augment(
    features_TF: Tensor,
    *,
    time_masks: int,
    max_time_frames: int,
    freq_masks: int,
    max_freq_bins: int,
    generator: torch.Generator,
    fill: float = 0.0,
) -> Tensor:
    """A copy of (T, 80) with random stripes set to `fill`, the features' mean (SpecAugment, Park et al. 2019).

    A time mask covers at most a quarter of the utterance, so that short ones keep their words; a mask of frequencies
    never covers all of them, and so nothing where a frame is one sample of a waveform.
    """
    out_TF = features_TF.clone()
    num_frames, num_bins = out_TF.shape

    def stripe(limit: int, size: int) -> tuple[int, int]:
        width = int(torch.randint(0, limit + 1, (), generator=generator))
        start = int(torch.randint(0, max(1, size - width + 1), (), generator=generator))
        return start, start + width

    for _ in range(time_masks):
        start, end = stripe(min(max_time_frames, num_frames // 4), num_frames)
        out_TF[start:end] = fill
    for _ in range(freq_masks):
        start, end = stripe(min(max_freq_bins, num_bins - 1), num_bins)
        out_TF[:, start:end] = fill
    return out_TF
