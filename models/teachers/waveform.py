"""HuBERT, WavLM, wav2vec2 and data2vec-audio: teachers that read the waveform itself.

Shape suffixes: B utterances, S samples, C channels of the convolutions, T frames of an utterance, F frames of all,
D channels, H heads.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mvqkd.models.teachers.base import TeacherInfo, TransformersTeacher, compile_layers
from mvqkd.models.teachers.batch import Audio, pad_frames, states_after
from mvqkd.models.teachers.wavlm import use_fused_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a joined front end: the first convolution of 30 s at 512 channels writes 197 MB in float32.
_FRAMES_AT_ONCE = {"cpu": 250, "cuda": 1500}


def count_conv_frames(num_samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Number of outputs of a stack of unpadded convolutions; 0 when the input is too short for one."""
    for kernel, stride in zip(kernels, strides, strict=True):
        if num_samples < kernel:
            return 0
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def normalize_in_place(waveform: Tensor) -> None:
    """Zero mean and unit variance, as transformers' feature extractor does, its epsilon included."""
    variance, mean = torch.var_mean(waveform, correction=0)
    waveform.sub_(mean).div_(torch.sqrt(variance + 1e-7))


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Samples that one output of a stack of convolutions sees, and samples between two outputs."""
    field, shift = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * shift
        shift *= stride
    return field, shift


class WaveformTeacher(TransformersTeacher):
    """A wav2vec2-like encoder: convolutions over the waveform, positional convolution, transformer.

    Three parts of such models let one utterance see another's padding; each is met in its place:

    - normalization over time, of the waveform and in the group norm after the first convolution: the waveform
      is normalized by itself, and a front end with group norm runs on each utterance alone. The others, with
      layer norm, take all utterances one after the other as if they were one: convolutions are unpadded, so
      a frame sees its own samples alone, and frames that see two utterances are left out;
    - the positional convolutions, data2vec's stacked ones and HuBERT's optional batch norm before it, which
      turn zero padding into other values: every stage's output is zeroed beyond the utterance's end;
    - attention: padded frames are masked as keys.
    """

    def __init__(
        self,
        *,
        model: "PreTrainedModel",
        infos: Mapping[int, TeacherInfo],
        device: torch.device,
        normalize: bool,
        compile: bool = False,
    ) -> None:
        super().__init__(model=model, infos=infos, device=device)
        self._normalize = normalize
        config = model.config
        self._kernels, self._strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self._norm_before_layers = not getattr(config, "do_stable_layer_norm", False)
        # data2vec has layer norm without saying so.
        self._joined = getattr(config, "feat_extract_norm", "layer") == "layer"
        self._position_stages = _position_stages(model.encoder.pos_conv_embed)
        self._position_bias = None
        if self._info.architecture == "wavlm":
            self._position_bias = use_fused_attention(model.encoder, device)
        if compile:
            compile_layers(model.encoder.layers)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives; 0 when it is too short."""
        return count_conv_frames(num_samples, self._kernels, self._strides)

    def _states(self, audio: Audio, layers: Sequence[int]) -> list[Tensor]:
        if self._normalize:
            for waveform in audio.waveforms():
                normalize_in_place(waveform)
        x_BTD, keep_BT = pad_frames(self._front_end(audio))
        encoder = self._model.encoder
        x_BTD = x_BTD + self._position_embeddings(x_BTD, keep_BT)
        if self._norm_before_layers:
            x_BTD = encoder.layer_norm(x_BTD)
        if self._position_bias is not None:
            bias_HTT = self._position_bias(x_BTD.shape[1])
            return states_after(
                layers,
                encoder.layers,
                x_BTD,
                lambda layer, x_BTD: layer(x_BTD, attention_mask=keep_BT, position_bias=bias_HTT)[0],
            )
        mask_B11T = None if keep_BT is None else keep_BT[:, None, None, :]
        return states_after(
            layers, encoder.layers, x_BTD, lambda layer, x_BTD: layer(x_BTD, attention_mask=mask_B11T)
        )

    def _front_end(self, audio: Audio) -> list[Tensor]:
        """Projected features ``(T, D)`` of each utterance."""
        if not self._joined:
            return [self._features(waveform) for waveform in audio.waveforms()]
        field, shift = self._info.min_samples, self._info.frame_shift_samples
        frames = self.num_frames(len(audio.samples_S))
        at_once = _FRAMES_AT_ONCE.get(self._device.type, 1500)
        parts = []
        for first in range(0, frames, at_once):
            last = min(first + at_once, frames) - 1
            parts.append(self._features(audio.samples_S[first * shift : last * shift + field]))
        x_FD = torch.cat(parts)
        own = zip(audio.starts, audio.lengths, strict=True)
        return [x_FD[start // shift :][: self.num_frames(length)] for start, length in own]

    def _features(self, samples_S: Tensor) -> Tensor:
        """Samples to projected features ``(F, D)``."""
        with self._convolutions():
            features_1CF = self._model.feature_extractor(samples_S[None])
        projected = self._model.feature_projection(features_1CF.transpose(1, 2))
        # Some of the models return the normalized features beside the projected ones.
        return projected[0] if isinstance(projected, Tensor) else projected[0][0]

    def _position_embeddings(self, x_BTD: Tensor, keep_BT: Tensor | None) -> Tensor:
        x_BDT = x_BTD.transpose(1, 2)
        if self._device.type == "cpu" and x_BDT.dtype == torch.bfloat16:
            x_BDT = x_BDT.float()  # as the convolutions' weights are
        for stage in self._position_stages:
            with self._convolutions():
                x_BDT = stage(x_BDT)
            if keep_BT is not None:
                x_BDT = x_BDT.masked_fill(~keep_BT[:, None, :], 0.0)
        return x_BDT.transpose(1, 2)


def _position_stages(module: Any) -> list[nn.Module]:
    """The parts of a positional embedding between which padding has to be zeroed again."""
    stacked = getattr(module, "layers", None)
    if stacked is not None:
        return list(stacked)
    convolution = nn.Sequential(module.conv, module.padding, module.activation)
    batch_norm = getattr(module, "batch_norm", None)
    return [convolution] if batch_norm is None else [batch_norm, convolution]
