"""Layer norm and what follows it in one pass over memory: in tensor operations, or compiled for the device.

Shape suffixes: B utterances, T frames of an utterance, F frames, C channels.
"""

import warnings
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn

from mvqkd.models.teachers.products import wide

PRODUCT_NORMS = {"cuda"}
"""Types of devices whose layers get `ProductNorm`s."""


class NormRows(Protocol):
    """Layer norm of each frame, computed in float32."""

    def __call__(
        self, x_FC: Tensor, norm: nn.LayerNorm, *, bias_C: Tensor | None, gelu: bool, dtype: torch.dtype
    ) -> Tensor:
        """Frames (F, C), to which a bias is added before the norm, to (F, C) in a dtype, after GELU if asked for."""
        ...


def norm_in_tensors(
    x_FC: Tensor, norm: nn.LayerNorm, *, bias_C: Tensor | None, gelu: bool, dtype: torch.dtype
) -> Tensor:
    """`NormRows` anywhere."""
    y_FC = wide(x_FC)
    if bias_C is not None:
        y_FC = y_FC + bias_C
    y_FC = nn.functional.layer_norm(y_FC, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return (nn.functional.gelu(y_FC) if gelu else y_FC).to(dtype)


def choose_norm(device: torch.device) -> NormRows:
    """The fastest for a device."""
    return compiled_norm(device) or norm_in_tensors


@cache
def compiled_norm(device: torch.device) -> NormRows | None:
    """That compiled for a device; None where there is none, and then tensor operations do."""
    if device.type != "cuda":
        return None
    try:
        from mvqkd.models.teachers import triton as compiled

        _check_against_tensors(compiled.norm_rows, device)
    except Exception as error:  # noqa: BLE001 -- compilers for GPUs fail in many ways, and there is another way
        warnings.warn(
            f"the teachers' layer norm cannot be compiled for {device} and runs in tensor operations, which takes "
            f"longer: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return compiled.norm_rows


def _check_against_tensors(norm_rows: NormRows, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x_FC = torch.randn(9, 48, generator=generator).to(device)
    norm = nn.LayerNorm(48, device=device).requires_grad_(False)
    found, expected = (
        each(x_FC, norm, bias_C=x_FC[0], gelu=True, dtype=torch.float32)
        for each in (norm_rows, norm_in_tensors)
    )
    if not torch.allclose(found, expected, rtol=1e-5, atol=1e-5):
        raise ArithmeticError("its numbers are not those of the layer norm in tensor operations")


class ProductNorm(nn.Module):
    """A layer norm that matrix products alone read: its result is in their dtype at once.

    Under autocast each product would turn the float32 result of an `nn.LayerNorm` into its dtype by itself, and a
    state that is not float32 would be turned into it first. The numbers are the same.

    Args:
        norm: whose weights are used.
        device: where they are.
        dtype: of the products.
    """

    def __init__(self, norm: nn.LayerNorm, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self._dtype, self._norm_rows = norm, dtype, choose_norm(device)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """States (B, T, C) to (B, T, C) in the products' dtype."""
        x_FC = x_BTC.flatten(0, 1).contiguous()
        y_FC = self._norm_rows(x_FC, self.norm, bias_C=None, gelu=False, dtype=self._dtype)
        return y_FC.view(x_BTC.shape)


def use_product_norms(layers: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> None:
    """Replace the layer norms of transformer layers that have them before attention and feed-forward, in place."""
    for layer in layers:
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(layer, name, ProductNorm(child, device, dtype))
