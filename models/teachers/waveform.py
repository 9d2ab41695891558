"""HuBERT, WavLM, wav2vec2 and data2vec-audio: teachers that read the waveform itself.

Shape suffixes: B utterances, S samples, C channels of the front end, T frames of an utterance, F frames of all,
D channels, H heads.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mvqkd.models.teachers.base import TeacherInfo, TransformersTeacher
from mvqkd.models.teachers.batch import Audio, pad_frames, states_after
from mvqkd.models.teachers.front_end import LibraryFrontEnd, ProductFrontEnd, Spans
from mvqkd.models.teachers.positions import position_stages
from mvqkd.models.teachers.products import Convolutions, convolutions_for
from mvqkd.models.teachers.wavlm import use_fused_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a joined front end: the first convolution of 30 s at 512 channels writes 197 MB in float32.
_FRAMES_AT_ONCE = {"cpu": 250, "cuda": 1500}

# As products the front end wants as many as memory allows: what the first convolution writes and its norm makes of it.
_BYTES_AT_ONCE = 2**30


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
      is normalized by itself, and so is each utterance in a front end with group norm. Otherwise a front end
      takes all utterances one after the other as if they were one: convolutions are unpadded, so a frame sees
      its own samples alone, and frames that see two utterances are left out. With torch's convolutions a front
      end with group norm runs on each utterance alone;
    - the positional convolutions, data2vec's stacked ones and HuBERT's optional batch norm before it, which
      turn zero padding into other values: every stage's output is zeroed beyond the utterance's end;
    - attention: padded frames are masked as keys.

    Args:
        normalize: whether waveforms are, to zero mean and unit variance.
        compile: run the layers through torch.compile.
        convolutions: how they are computed; by the device where it is None.
    """

    def __init__(
        self,
        *,
        model: "PreTrainedModel",
        infos: Mapping[int, TeacherInfo],
        device: torch.device,
        normalize: bool,
        compile: bool = False,
        convolutions: Convolutions | None = None,
    ) -> None:
        super().__init__(model=model, infos=infos, device=device)
        self._normalize = normalize
        config = model.config
        self._kernels, self._strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self._norm_before_layers = not getattr(config, "do_stable_layer_norm", False)
        # data2vec has layer norm without saying so.
        self._joined = getattr(config, "feat_extract_norm", "layer") == "layer"
        self._by = convolutions or convolutions_for(device)
        front_end: nn.Module = LibraryFrontEnd(model.feature_extractor)
        if self._by == "products":
            front_end = ProductFrontEnd(model.feature_extractor, device)
        # In the model, so that its weights are kept once and move with it.
        model.feature_extractor = front_end
        model.encoder.pos_conv_embed = position_stages(model.encoder.pos_conv_embed, self._by)
        self._position_bias = None
        if self._info.architecture == "wavlm":
            self._position_bias = use_fused_attention(model.encoder, device)
        self._prepare_layers(model.encoder.layers, norm_first=not self._norm_before_layers, compile=compile)

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
        field, shift = self._info.min_samples, self._info.frame_shift_samples
        spans = list(zip(audio.starts, audio.lengths, strict=True))
        parts = []
        if self._joined:
            frames = self.num_frames(len(audio.samples_S))
            at_once = self._frames_at_once()
            for first in range(0, frames, at_once):
                last = min(first + at_once, frames) - 1
                parts.append(self._features(audio.samples_S[first * shift : last * shift + field]))
            x_FD = torch.cat(parts)
            return [x_FD[start // shift :][: self.num_frames(length)] for start, length in spans]
        for own in self._runs(spans):
            first, (start, length) = own[0][0], own[-1]
            own = [(start - first, length) for start, length in own]
            x_FD = self._features(audio.samples_S[first : start + length], own)
            parts += [x_FD[start // shift :][: self.num_frames(length)] for start, length in own]
        return parts

    def _frames_at_once(self) -> int:
        if self._by == "library":
            return _FRAMES_AT_ONCE.get(self._device.type, 1500)
        first: Any = self._model.feature_extractor.layers[0].convolution.weight_NK
        rows = self._info.frame_shift_samples // self._strides[0]
        return max(1, _BYTES_AT_ONCE // (2 * rows * len(first) * first.element_size()))

    def _runs(self, spans: Spans) -> list[Spans]:
        """Utterances whose features are computed together where a norm goes over the time of each."""
        at_once = 1 if self._by == "library" else self._frames_at_once() * self._info.frame_shift_samples
        runs: list[list[tuple[int, int]]] = []
        for start, length in spans:
            if not runs or start + length - runs[-1][0][0] > at_once:
                runs.append([])
            runs[-1].append((start, length))
        return list(runs)

    def _features(self, samples_S: Tensor, utterances: Spans = ()) -> Tensor:
        """Samples to projected features ``(F, D)``; a norm over time needs to know where the utterances are."""
        with self._convolutions():
            features_FC = self._model.feature_extractor(samples_S, utterances)
        projected = self._model.feature_projection(features_FC[None])
        # Some of the models return the normalized features beside the projected ones.
        return projected[0] if isinstance(projected, Tensor) else projected[0][0]

    def _position_embeddings(self, x_BTD: Tensor, keep_BT: Tensor | None) -> Tensor:
        if self._device.type == "cpu" and x_BTD.dtype == torch.bfloat16:
            x_BTD = x_BTD.float()  # as the convolutions' weights are
        for stage in self._model.encoder.pos_conv_embed:
            with self._convolutions():
                x_BTD = stage(x_BTD)
            if keep_BT is not None:
                x_BTD = x_BTD.masked_fill(~keep_BT[:, :, None], 0.0)
        return x_BTD
