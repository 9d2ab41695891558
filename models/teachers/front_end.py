"""Front ends of the teachers that read the waveform, by torch's convolutions or as matrix products.

Shape suffixes: S samples, F frames at any stage, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mvqkd.models.teachers.lean import transformers_class
from mvqkd.models.teachers.norms import choose_norm
from mvqkd.models.teachers.products import ProductConvolution, wide

Spans = Sequence[tuple[int, int]]
"""Where utterances begin, and how long they are, in samples or in frames of a stage."""


class LibraryFrontEnd(nn.Module):
    """transformers' own, with channels first.

    Args:
        extractor: the model's.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, samples_S: Tensor, utterances: Spans) -> Tensor:
        """Samples, of a single utterance where there is a norm over time, to features (F, C)."""
        features_CF: Tensor = self.extractor(samples_S[None])[0]
        return features_CF.t()


class ProductFrontEnd(nn.Module):
    """The same as matrix products, with channels last.

    Args:
        extractor: the model's, whose weights are used in their dtypes.
        device: where it is.
    """

    def __init__(self, extractor: Any, device: torch.device) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(layer, device) for layer in extractor.conv_layers)

    def forward(self, samples_S: Tensor, utterances: Spans) -> Tensor:
        """Samples to features (F, C); utterances begin at multiples of the samples between two features.

        A feature that sees two utterances means nothing, and neither do those between two of them.
        """
        x_FC, spans = samples_S[:, None], list(utterances)
        with torch.autocast(samples_S.device.type, enabled=False):
            for layer in self.layers:
                x_FC, spans = layer(x_FC, spans)
        return x_FC


class _Layer(nn.Module):
    """A convolution, and a norm over channels, one over time or none, and an activation."""

    bias_C: Tensor | None

    def __init__(self, layer: Any, device: torch.device) -> None:
        super().__init__()
        self.convolution = ProductConvolution(layer.conv)
        bias = layer.conv.bias
        self.register_buffer("bias_C", None if bias is None else wide(bias.detach()), persistent=False)
        self.norm: nn.Module | None = getattr(layer, "layer_norm", None)
        self.activation = layer.activation
        self._is_gelu = isinstance(layer.activation, transformers_class("activations", "GELUActivation"))
        self._norm_rows = choose_norm(device)

    def forward(self, x_FC: Tensor, spans: Spans) -> tuple[Tensor, Spans]:
        dtype = self.convolution.weight_NK.dtype
        x_FC = self.convolution(x_FC.to(dtype))
        kernel, stride = self.convolution.kernel, self.convolution.stride
        spans = [(start // stride, (length - kernel) // stride + 1) for start, length in spans]
        if isinstance(self.norm, nn.LayerNorm):
            x_FC = self._norm_rows(x_FC, self.norm, bias_C=self.bias_C, gelu=self._is_gelu, dtype=dtype)
            return x_FC if self._is_gelu else self.activation(x_FC), spans
        if self.bias_C is not None:
            x_FC = (x_FC + self.bias_C).to(dtype)
        if self.norm is None:
            return self.activation(x_FC), spans
        for start, length in spans:
            own_FC = x_FC[start : start + length]
            own_FC.copy_(self.activation(_norm_over_time(own_FC, self.norm)))
        return x_FC, spans


def _norm_over_time(x_FC: Tensor, norm: Any) -> Tensor:
    """Group norm of one utterance with a group for each channel, as transformers' models have it; in float32."""
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
    x_FC = wide(x_FC)
    variance_C, mean_C = torch.var_mean(x_FC, dim=0, correction=0)
    scale_C = norm.weight * torch.rsqrt(variance_C + norm.eps)
    return torch.addcmul(norm.bias - mean_C * scale_C, x_FC, scale_C)
