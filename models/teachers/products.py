"""Convolutions as matrix products, for devices whose own convolutions are far from what their products can do.

Frames are in the rows of memory and channels in the columns, so that the window that an output sees is one piece of
memory, and a matrix of windows is a view of the frames wherever its rows need not overlap. The sums are those of the
convolution, in another order.

Shape suffixes: B utterances, S samples, T frames of an utterance, F frames in, M frames out, C channels, D channels of
all groups, N channels out, K numbers of a window, G groups.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Convolutions = Literal["library", "products"]
"""How convolutions are computed: by torch's, or as matrix products."""

CONVOLUTIONS: dict[str, Convolutions] = {"cuda": "products"}
"""By type of device; torch's elsewhere."""

# Windows that are narrower are copied: their rows are not aligned as fast products want them, and they are small.
_NARROW = 64
_ALIGNED = 16

LARGEST_BLOCK = 8
"""Outputs in a row of a product of a grouped convolution."""

# Of copied windows of a grouped convolution.
_BYTES_AT_ONCE = 256 * 2**20


def convolutions_for(device: torch.device) -> Convolutions:
    """What is faster on a device."""
    return CONVOLUTIONS.get(device.type, "library")


class ProductConvolution(nn.Module):
    """A convolution over frames, without padding, groups and bias, as matrix products.

    Args:
        convolution: whose weight is used, in its dtype; its bias and padding are left to the caller.
    """

    weight_NK: Tensor

    def __init__(self, convolution: nn.Conv1d) -> None:
        super().__init__()
        _check_plain(convolution)
        assert convolution.groups == 1
        self.kernel, self.stride = convolution.kernel_size[0], convolution.stride[0]
        weight_NK = convolution.weight.detach().transpose(1, 2).flatten(1)
        self.taps = weight_NK.shape[1]
        # Zeros after the numbers of a window.
        self._spare = -self.taps % _ALIGNED if self.taps < _NARROW else 0
        padded_NK = nn.functional.pad(weight_NK, (0, self._spare)).contiguous()
        self.register_buffer("weight_NK", padded_NK, persistent=False)

    def forward(self, x_FC: Tensor) -> Tensor:
        """Frames (F, C), contiguous and of the weight's dtype, to (M, N)."""
        frames, channels = x_FC.shape
        count = (frames - self.kernel) // self.stride + 1
        weight_KN = self.weight_NK.t()
        if self.taps < _NARROW:
            windows_MK = x_FC.view(-1).unfold(0, self.taps, self.stride * channels)
            return nn.functional.pad(windows_MK, (0, self._spare)) @ weight_KN
        # Every so many windows, those that do not overlap: rows of a matrix that need not be copied.
        apart = -(-self.kernel // self.stride)
        y_MN = x_FC.new_empty(count, len(self.weight_NK))
        step = self.stride * channels
        for first in range(min(apart, count)):
            out = y_MN[first::apart]
            windows_MK = x_FC.as_strided(
                (len(out), self.taps), (apart * step, 1), x_FC.storage_offset() + first * step
            )
            torch.mm(windows_MK, weight_KN, out=out)
        return y_MN


class PaddedProducts(nn.Module):
    """Convolutions over spectrograms of kernel 3, padded by a zero at both ends, each followed by GELU.

    Args:
        convolutions: one after the other, as in Whisper; the strides are 1 or 2.
    """

    def __init__(self, convolutions: Sequence[nn.Conv1d]) -> None:
        super().__init__()
        assert all(each.kernel_size == (3,) and each.padding == (1,) for each in convolutions)
        self.products = nn.ModuleList(ProductConvolution(each) for each in convolutions)
        self.biases = nn.ParameterList(each.bias for each in convolutions)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Frames (B, T, C), an even number, to (B, T / the strides, N) in the weights' dtype."""
        for product, bias_N in zip(self.products, self.biases, strict=True):
            assert isinstance(product, ProductConvolution)
            utterances, frames, channels = x_BTC.shape
            # Utterances one after the other with zeros between; what sees two of them is left out below.
            padded_FC = x_BTC.new_zeros(
                utterances * (frames + 2) + 2, channels, dtype=product.weight_NK.dtype
            )
            own_BTC = padded_FC[:-2].view(utterances, frames + 2, channels)
            own_BTC[:, 1:-1] = x_BTC
            y_MN = product(padded_FC)
            y_BTN = y_MN.view(utterances, -1, y_MN.shape[1])[:, : frames // product.stride]
            x_BTC = nn.functional.gelu(y_BTN + wide(bias_N))
        return x_BTC


class GroupedProduct(nn.Module):
    """A convolution of stride 1 in groups, whose outputs are as many as its inputs, as one matrix product per group.

    An output of few channels makes a poor product, and windows that begin at every frame are copies of the input as
    many as the kernel is long. So one row of the product is a block of several outputs: the window of all of them,
    with the weight of each shifted in it and zeros elsewhere.

    Args:
        convolution: whose weight and bias are used, in the weight's dtype; padded by half its kernel.
        block: outputs of a row; by the kernel's length where it is None.
    """

    weight_GNK: Tensor
    bias_D: Tensor | None

    def __init__(self, convolution: nn.Conv1d, *, block: int | None = None) -> None:
        super().__init__()
        _check_plain(convolution)
        kernel = self.kernel = convolution.kernel_size[0]
        assert convolution.stride == (1,) and convolution.padding == (kernel // 2,)
        self.groups = convolution.groups
        # As a share of the kernel the zeros stay few.
        self.block = block or max(1, min(LARGEST_BLOCK, kernel // 8))
        weight_GNCK = convolution.weight.detach().unflatten(0, (self.groups, -1))
        groups, width, channels, _ = weight_GNCK.shape
        shifted = weight_GNCK.new_zeros(groups, self.block, width, self.block + kernel - 1, channels)
        for each in range(self.block):
            shifted[:, each, :, each : each + kernel] = weight_GNCK.transpose(2, 3)
        self.register_buffer("weight_GNK", shifted.flatten(3).flatten(1, 2), persistent=False)
        bias = convolution.bias
        self.register_buffer("bias_D", None if bias is None else wide(bias.detach()), persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Frames (B, T, D) to (B, T, D) in the weight's dtype, or with a bias in float32."""
        utterances, frames, _ = x_BTD.shape
        blocks = -(-frames // self.block)
        x_GBTC = self._padded(x_BTD, blocks)
        step = self.block * x_GBTC.shape[-1]
        windows_GBMK = x_GBTC.flatten(2).unfold(2, self.weight_GNK.shape[2], step)
        y_GBMN = x_GBTC.new_empty(self.groups, utterances, blocks, self.weight_GNK.shape[1])
        row_bytes = blocks * windows_GBMK.shape[-1] * x_GBTC.element_size()
        utterances_at_once = max(1, min(utterances, _BYTES_AT_ONCE // row_bytes))
        groups_at_once = max(1, _BYTES_AT_ONCE // (row_bytes * utterances_at_once))
        for group in range(0, self.groups, groups_at_once):
            for first in range(0, utterances, utterances_at_once):
                own = slice(group, group + groups_at_once), slice(first, first + utterances_at_once)
                product = windows_GBMK[own].flatten(1, 2) @ self.weight_GNK[own[0]].transpose(1, 2)
                y_GBMN[own] = product.unflatten(1, (-1, blocks))
        y_GBTC = y_GBMN.view(self.groups, utterances, blocks * self.block, -1)
        y_BTD = y_GBTC[:, :, :frames].permute(1, 2, 0, 3).flatten(2)
        return y_BTD if self.bias_D is None else y_BTD + self.bias_D

    def _padded(self, x_BTD: Tensor, blocks: int) -> Tensor:
        """(G, B, T, C) in the weight's dtype, with the zeros that the first and last outputs see."""
        utterances, frames, channels = x_BTD.shape
        length = blocks * self.block + self.kernel - 1
        x_GBTC = x_BTD.new_zeros(
            self.groups, utterances, length, channels // self.groups, dtype=self.weight_GNK.dtype
        )
        first = self.kernel // 2
        own = x_BTD.view(utterances, frames, self.groups, -1).permute(2, 0, 1, 3)
        x_GBTC[:, :, first : first + frames] = own
        return x_GBTC


def wide(x: Tensor) -> Tensor:
    """In float32, or in more where it is more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_plain(convolution: nn.Conv1d) -> None:
    assert convolution.dilation == (1,) and convolution.padding_mode == "zeros"
