"""Positional convolutions of the teachers that read the waveform, by torch's convolutions or as matrix products.

Shape suffixes: B utterances, T frames, D channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mvqkd.models.teachers.products import Convolutions, GroupedProduct, wide


def position_stages(module: Any, convolutions: Convolutions) -> nn.ModuleList:
    """The parts of a model's positional embedding, frames (B, T, D) to the same; between them padding has to be zeroed.

    What they give is float32, and with it the residual stream of all layers.

    Args:
        module: transformers' module.
        convolutions: how they are computed.
    """
    batch_norm = getattr(module, "batch_norm", None)
    stages: list[nn.Module] = [] if batch_norm is None else [_BatchNorm(batch_norm)]
    kind = _Library if convolutions == "library" else _Product
    stages += [kind(layer) for layer in getattr(module, "layers", [module])]
    return nn.ModuleList(stages)


class _BatchNorm(nn.Module):
    """HuBERT's optional one, before the convolution."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_FD: Tensor = self.norm(x_BTD.flatten(0, 1))
        return y_FD.view_as(x_BTD)


class _Library(nn.Module):
    """Convolution, data2vec's norm of each frame, activation."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.convolution, self.padding = layer.conv, layer.padding
        self.norm, self.activation = getattr(layer, "layer_norm", None), layer.activation

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = wide(self.padding(self.convolution(x_BTD.transpose(1, 2))).transpose(1, 2))
        return self.activation(x_BTD if self.norm is None else self.norm(x_BTD))


class _Product(nn.Module):
    """The same as matrix products."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.product = GroupedProduct(layer.conv)
        self.norm, self.activation = getattr(layer, "layer_norm", None), layer.activation

    def forward(self, x_BTD: Tensor) -> Tensor:
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_BTD = wide(self.product(x_BTD))
            return self.activation(x_BTD if self.norm is None else self.norm(x_BTD))
