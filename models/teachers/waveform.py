"""HuBERT, WavLM, wav2vec2 and data2vec-audio: teachers that read the waveform itself.

Shape suffixes: B utterances, C channels of the convolutions, T frames, D channels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mvqkd.models.teachers.base import TeacherInfo, TransformersTeacher, pad_frames

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_conv_frames(num_samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Number of outputs of a stack of unpadded convolutions; 0 when the input is too short for one."""
    for kernel, stride in zip(kernels, strides, strict=True):
        if num_samples < kernel:
            return 0
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


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

    - normalization over time, of the waveform and in the group norm after the first convolution: the
      convolutional front end runs on each utterance alone, unpadded (its time is small beside the
      transformer's);
    - the positional convolutions, data2vec's stacked ones and HuBERT's optional batch norm before it, which
      turn zero padding into other values: every stage's output is zeroed beyond the utterance's end;
    - attention: padded frames are masked as keys.
    """

    def __init__(
        self, *, model: "PreTrainedModel", info: TeacherInfo, device: torch.device, normalize: bool
    ) -> None:
        super().__init__(model=model, info=info, device=device)
        self._normalize = normalize
        config = model.config
        self._kernels, self._strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self._norm_before_layers = not getattr(config, "do_stable_layer_norm", False)
        self._has_position_bias = info.architecture == "wavlm"
        self._position_stages = _position_stages(model.encoder.pos_conv_embed)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives; 0 when it is too short."""
        return count_conv_frames(num_samples, self._kernels, self._strides)

    def _embed(self, waveforms: list[Tensor]) -> list[Tensor]:
        frames = [self._front_end(waveform) for waveform in waveforms]
        x_BTD, keep_BT = pad_frames(frames)
        encoder = self._model.encoder
        x_BTD = x_BTD + self._position_embeddings(x_BTD, keep_BT)
        if self._norm_before_layers:
            x_BTD = encoder.layer_norm(x_BTD)
        if self._has_position_bias:
            bias = None
            for layer in encoder.layers:
                x_BTD, bias = layer(x_BTD, attention_mask=keep_BT, position_bias=bias)
        else:
            mask_B11T = None if keep_BT is None else keep_BT[:, None, None, :]
            for layer in encoder.layers:
                x_BTD = layer(x_BTD, attention_mask=mask_B11T)
        return [x_TD[: len(own)] for x_TD, own in zip(x_BTD, frames, strict=True)]

    def _front_end(self, waveform: Tensor) -> Tensor:
        """Waveform ``(num_samples,)`` of one utterance to projected features ``(T, D)``."""
        if self._normalize:
            # As transformers' feature extractor does, its epsilon included.
            variance, mean = torch.var_mean(waveform, correction=0)
            waveform = (waveform - mean) / torch.sqrt(variance + 1e-7)
        with self._convolutions():
            features_1CT = self._model.feature_extractor(waveform[None])
        projected = self._model.feature_projection(features_1CT.transpose(1, 2))
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
