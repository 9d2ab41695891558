"""The Whisper encoder as a teacher, with 30-second windows or windows as short as the utterance.

Shape suffixes: B utterances, S samples, T frames, D channels, M mel bins, F frequencies of the spectrum.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mvqkd.models.teachers.base import TeacherInfo, TransformersTeacher
from mvqkd.models.teachers.batch import Audio, numbers_on, pad_frames, states_after
from mvqkd.models.teachers.products import Convolutions, PaddedProducts, convolutions_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WhisperWindow = Literal["short", "exact"]

# The silence after an utterance is attended to as this many frames one by one, enough to leave the audio's
# last spectrogram frames behind, and then as one frame for each stretch of silence.
SILENCE_EDGE_FRAMES = 4
SILENCE_STRETCH_FRAMES = 32


class LogMel(nn.Module):
    """Whisper's log-mel spectrograms, as ``transformers.WhisperFeatureExtractor`` makes them.

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

    def forward(self, waveforms: Sequence[Tensor], num_frames: int) -> Tensor:
        """Waveforms ``(num_samples,)``, silence appended, to ``(B, num_mel, num_frames)``.

        The floor, 8 (80 dB) below the maximum, is each utterance's own.
        """
        x_BS = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        x_BS = nn.functional.pad(x_BS, (0, num_frames * self.hop_samples - x_BS.shape[1]))
        spectrum_BFT = torch.stft(x_BS, self.n_fft, self.hop_samples, window=self.window, return_complex=True)
        power_BFT = spectrum_BFT[:, :, :-1].abs().square()
        log_BMT = (self.filters_MF @ power_BFT).clamp(min=1e-10).log10()
        floor_B11 = log_BMT.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(log_BMT, floor_B11) + 4.0) / 4.0


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
        convolutions: Convolutions | None = None,
    ) -> None:
        super().__init__(model=model, infos=infos, device=device)
        self._log_mel = log_mel.to(device)
        self._window = window
        self._products: PaddedProducts | None = None
        if (convolutions or convolutions_for(device)) == "products":
            # In the model, so that it moves with it.
            self._products = model.products = PaddedProducts([model.conv1, model.conv2])
        self._prepare_layers(model.layers, norm_first=True, compile=compile)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives: those that start in it."""
        return -(-num_samples // self._info.frame_shift_samples)

    def _states(self, audio: Audio, layers: Sequence[int]) -> list[Tensor]:
        waveforms = audio.waveforms()
        # A GPU waits for what it is told when there is little to do at once; a CPU need not compute padding.
        together = [waveforms] if self._device.type == "cuda" else [[each] for each in waveforms]
        inputs = [self._front_end(each) for each in together]
        x_BTD, _ = pad_frames([x_TD for own_BTD, _ in inputs for x_TD in own_BTD])
        bias_B11T = None
        if self._window == "short":
            bias_BT = nn.utils.rnn.pad_sequence(
                [log_count_T for _, own_BT in inputs for log_count_T in own_BT],
                batch_first=True,
                padding_value=-torch.inf,
            )
            bias_B11T = bias_BT[:, None, None, :]
        return states_after(
            layers, self._model.layers, x_BTD, lambda layer, x_BTD: layer(x_BTD, attention_mask=bias_B11T)
        )

    def _front_end(self, waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Waveforms ``(num_samples,)`` to what the first layer reads.

        Returns:
            Frames ``(B, T, D)``, an utterance's first; and the logarithm of how many frames each stands for,
            ``(B, T)``, minus infinity where there is none.
        """
        window, device = self._model.config.max_source_positions, waveforms[0].device
        kept = [window] * len(waveforms)
        if self._window == "short":
            kept = [min(window, self.num_frames(len(w)) + SILENCE_EDGE_FRAMES) for w in waveforms]
        # One frame more than is kept: the last one kept then sees the silent spectrogram that it sees in a
        # 30-second window, not the convolutions' zero padding. Those of the shorter ones see more silence.
        with torch.autocast(device.type, enabled=False):
            mel_BMT = self._log_mel(waveforms, 2 * min(window, max(kept) + 1))
        with self._convolutions():
            x_BTD = self._convolved(mel_BMT)

        # Made where they are used: copies of lists would make the host wait for the device.
        kept_B1 = numbers_on(kept, device)[:, None]
        rows = max(each + math.ceil((window - each) / SILENCE_STRETCH_FRAMES) for each in kept)
        row_T = torch.arange(rows, device=device)
        start_BT = kept_B1 + (row_T - kept_B1) * SILENCE_STRETCH_FRAMES
        count_BT = (window - start_BT).clamp(0, SILENCE_STRETCH_FRAMES)
        is_own_BT = row_T < kept_B1
        position_BT = torch.where(is_own_BT, row_T, start_BT + count_BT // 2).clamp(max=window - 1)
        frame_BT = torch.minimum(row_T, kept_B1 - 1)
        x_BTD = x_BTD.gather(1, frame_BT[:, :, None].expand(-1, -1, x_BTD.shape[2]))
        x_BTD = x_BTD + self._model.embed_positions.weight[position_BT]
        return x_BTD, torch.where(is_own_BT, 1, count_BT).to(x_BTD.dtype).log()

    def _convolved(self, mel_BMT: Tensor) -> Tensor:
        """Spectrograms (B, M, T) to frames (B, T, D), half as many."""
        model = self._model
        if self._products is not None:
            with torch.autocast(mel_BMT.device.type, enabled=False):
                return self._products(mel_BMT.transpose(1, 2))
        x_BDT = nn.functional.gelu(model.conv1(mel_BMT))
        return nn.functional.gelu(model.conv2(x_BDT)).transpose(1, 2)
