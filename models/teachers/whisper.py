"""The Whisper encoder as a teacher, with 30-second windows or windows as short as the utterance.

Shape suffixes: B utterances, T frames, D channels, M mel bins, F frequencies of the spectrum.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mvqkd.models.teachers.base import TeacherInfo, TransformersTeacher, compile_layers
from mvqkd.models.teachers.batch import Audio, pad_frames, states_after

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WhisperWindow = Literal["short", "exact"]

# The silence after an utterance is attended to as this many frames one by one, enough to leave the audio's
# last spectrogram frames behind, and then as one frame for each stretch of silence.
SILENCE_EDGE_FRAMES = 4
SILENCE_STRETCH_FRAMES = 32


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
        """Waveform ``(num_samples,)``, silence appended, to ``(num_mel, num_frames)``.

        The floor, 8 (80 dB) below the maximum, is the utterance's own.
        """
        padding = num_frames * self.hop_samples - waveform.numel()
        padded = nn.functional.pad(waveform, (0, padding))
        spectrum_FT = torch.stft(
            padded, self.n_fft, self.hop_samples, window=self.window, return_complex=True
        )
        power_FT = spectrum_FT[:, :-1].abs().square()
        log_MT = (self.filters_MF @ power_FT).clamp(min=1e-10).log10()
        return (torch.maximum(log_MT, log_MT.max() - 8.0) + 4.0) / 4.0


class WhisperTeacher(TransformersTeacher):
    """The Whisper encoder; frame ``t`` is centered at sample ``320 t``.

    ``exact`` computes what transformers computes: silence up to 30 s, attention over all 1,500 frames.

    ``short`` computes the same spectrogram and convolutions for the utterance, but few frames stand for the
    silence after it. Without any the embeddings are far off: the model parks its attention on silence. Away
    from the utterance all silent frames enter the first layer alike but for their position, so the middle one
    of each stretch of ``SILENCE_STRETCH_FRAMES`` stands for the stretch, counted that often by a logarithm
    added to its attention logits. docs/teachers.md has the measured deviation.
    """

    def __init__(
        self,
        *,
        model: "PreTrainedModel",
        infos: Mapping[int, TeacherInfo],
        device: torch.device,
        log_mel: LogMel,
        window: WhisperWindow,
        compile: bool = False,
    ) -> None:
        super().__init__(model=model, infos=infos, device=device)
        self._log_mel = log_mel.to(device)
        self._window = window
        if compile:
            compile_layers(model.layers)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives: those that start in it."""
        return -(-num_samples // self._info.frame_shift_samples)

    def _states(self, audio: Audio, layers: Sequence[int]) -> list[Tensor]:
        inputs = [self._front_end(waveform) for waveform in audio.waveforms()]
        x_BTD, _ = pad_frames([x_TD for x_TD, _ in inputs])
        bias_B11T = None
        if self._window == "short":
            bias_BT = nn.utils.rnn.pad_sequence(
                [log_count_T for _, log_count_T in inputs], batch_first=True, padding_value=-torch.inf
            )
            bias_B11T = bias_BT[:, None, None, :]
        return states_after(
            layers, self._model.layers, x_BTD, lambda layer, x_BTD: layer(x_BTD, attention_mask=bias_B11T)
        )

    def _front_end(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform ``(num_samples,)`` of one utterance to what the first layer reads.

        Computed on each utterance alone, so that no convolution sees a neighbour's padding.

        Returns:
            Frames ``(T, D)``, the utterance's first; and the logarithm of how many frames each stands for,
            ``(T,)``.
        """
        model = self._model
        window_frames = model.config.max_source_positions
        kept_frames = window_frames
        if self._window == "short":
            kept_frames = min(window_frames, self.num_frames(waveform.numel()) + SILENCE_EDGE_FRAMES)
        # One frame more than is kept: the last one kept then sees the silent spectrogram that it sees in a
        # 30-second window, not the convolutions' zero padding.
        with torch.autocast(waveform.device.type, enabled=False):
            mel_MT = self._log_mel(waveform, 2 * min(window_frames, kept_frames + 1))
        with self._convolutions():
            x_1DT = nn.functional.gelu(model.conv1(mel_MT[None]))
            x_TD = nn.functional.gelu(model.conv2(x_1DT))[0].T[:kept_frames]

        # Made where they are used: copies of lists would make the host wait for the device.
        starts_T = torch.arange(kept_frames, window_frames, SILENCE_STRETCH_FRAMES, device=x_TD.device)
        counts_T = (window_frames - starts_T).clamp(max=SILENCE_STRETCH_FRAMES)
        x_TD = torch.cat([x_TD, x_TD[-1:].expand(len(starts_T), -1)])
        own_T = torch.arange(kept_frames, device=x_TD.device)
        x_TD = x_TD + model.embed_positions.weight[torch.cat([own_T, starts_T + counts_T // 2])]
        return x_TD, torch.cat([torch.ones_like(own_T), counts_T]).to(x_TD.dtype).log()
