"""The Whisper encoder as a teacher, with 30-second windows or windows as short as the utterance."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.teachers.base import TeacherInfo, TransformersTeacher, pad_frames

WhisperWindow = Literal["short", "exact"]

SILENCE_TAIL_FRAMES = 0


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram of one utterance, as ``transformers.WhisperFeatureExtractor`` makes it.

    Args:
        mel_filters: float ``(n_fft // 2 + 1, num_mel_bins)``, the feature extractor's filter bank.
        n_fft: window length in samples.
        hop_samples: samples between two spectrogram frames.
    """

    filters_MF: Tensor
    window: Tensor

    def __init__(self, *, mel_filters: np.ndarray, n_fft: int, hop_samples: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop_samples = hop_samples
        filters_MF = torch.from_numpy(mel_filters.T.copy()).float()
        self.register_buffer("filters_MF", filters_MF, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: Tensor, num_frames: int) -> Tensor:
        """Waveform ``(num_samples,)``, silence appended up to ``num_frames`` hops, to ``(num_mel, num_frames)``.

        The floor, 8 (80 dB) below the maximum, is the utterance's own.
        """
        padding = num_frames * self.hop_samples - waveform.numel()
        padded = nn.functional.pad(waveform, (0, padding))
        spectrum_FT = torch.stft(padded, self.n_fft, self.hop_samples, window=self.window, return_complex=True)
        power_FT = spectrum_FT[:, :-1].abs().square()
        log_MT = (self.filters_MF @ power_FT).clamp(min=1e-10).log10()
        return (torch.maximum(log_MT, log_MT.max() - 8.0) + 4.0) / 4.0


class WhisperTeacher(TransformersTeacher):
    """The Whisper encoder; frame ``t`` is centered at sample ``320 t``.

    ``exact`` computes what transformers computes: silence up to 30 s, attention over all 1,500 frames. ``short``
    computes the same spectrogram and convolutions, but attention only over the utterance's own frames and
    ``SILENCE_TAIL_FRAMES`` frames of silence; docs/teachers.md has the measured deviation.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        info: TeacherInfo,
        device: torch.device,
        log_mel: LogMel,
        window: WhisperWindow,
    ) -> None:
        super().__init__(model=model, info=info, device=device)
        self._log_mel = log_mel.to(device)
        self._window = window

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives: all that start before its end."""
        return -(-num_samples // self._info.frame_shift_samples)

    def _embed(self, waveforms: list[Tensor]) -> list[Tensor]:
        frames = [self._front_end(waveform) for waveform in waveforms]
        x_BTD, keep_BT = pad_frames(frames)
        mask_B11T = None if keep_BT is None else keep_BT[:, None, None, :]
        for layer in self._model.layers:
            x_BTD = layer(x_BTD, attention_mask=mask_B11T)
        lengths = [self.num_frames(len(waveform)) for waveform in waveforms]
        return [x_TD[:length] for x_TD, length in zip(x_BTD, lengths, strict=True)]

    def _front_end(self, waveform: Tensor) -> Tensor:
        """Waveform ``(num_samples,)`` of one utterance to what the first layer reads, ``(frames, D)``.

        Computed on each utterance alone, so that no convolution sees a neighbour's padding.
        """
        model = self._model
        max_frames = model.config.max_source_positions
        num_frames = max_frames
        if self._window == "short":
            num_frames = min(max_frames, self.num_frames(waveform.numel()) + SILENCE_TAIL_FRAMES)
        # One frame of silence more than is kept: the last one kept then sees the spectrogram it sees in a
        # 30-second window, not the convolutions' zero padding.
        with torch.autocast(waveform.device.type, enabled=False):
            mel_MT = self._log_mel(waveform, 2 * min(max_frames, num_frames + 1))
        x_1DT = nn.functional.gelu(model.conv1(mel_MT[None]))
        x_DT = nn.functional.gelu(model.conv2(x_1DT))[0]
        return x_DT.T[:num_frames] + model.embed_positions.weight[:num_frames]
