"""Convolutions as matrix products are the convolutions."""

import pytest
import torch
from torch import nn

from mvqkd.models.teachers import products
from mvqkd.models.teachers.products import GroupedProduct, PaddedProducts, ProductConvolution


def convolution(*sizes: int, **settings: int) -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(*sizes, **settings, dtype=torch.float64).requires_grad_(False)


@pytest.mark.parametrize(("channels", "width"), [(1, 8), (5, 3), (32, 8)])
@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (3, 1), (5, 2), (1, 1), (2, 3)])
def test_a_convolution(channels, width, kernel, stride):
    plain = convolution(channels, width, kernel, stride=stride, bias=False)
    product = ProductConvolution(plain)
    for frames in (kernel, kernel + 1, kernel + 3 * stride, 101):
        x_FC = torch.randn(frames + 2, channels, dtype=torch.float64)[1:-1]
        torch.testing.assert_close(product(x_FC), plain(x_FC.t()).t(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 6, 7, 16, 128])
@pytest.mark.parametrize("block", [None, 1, 3])
@pytest.mark.parametrize("bytes_at_once", [1, 20_000, 2**30])
def test_a_convolution_in_groups(monkeypatch, kernel, block, bytes_at_once):
    monkeypatch.setattr(products, "_BYTES_AT_ONCE", bytes_at_once)
    plain = convolution(12, 12, kernel, padding=kernel // 2, groups=3)
    product = GroupedProduct(plain, block=block)
    for utterances, frames in ((1, 1), (2, 3), (3, 41)):
        x_BTD = torch.randn(utterances, frames, 12, dtype=torch.float64)
        # An even kernel gives one output more than there are inputs.
        expected_BTD = plain(x_BTD.transpose(1, 2))[:, :, :frames].transpose(1, 2)
        torch.testing.assert_close(product(x_BTD), expected_BTD, rtol=1e-12, atol=1e-12)


def test_blocks_follow_the_kernel():
    blocks = {
        kernel: GroupedProduct(convolution(4, 4, kernel, padding=kernel // 2, groups=2)).block
        for kernel in (3, 19, 128)
    }
    assert blocks == {3: 1, 19: 2, 128: 8}


@pytest.mark.parametrize("frames", [2, 10])
def test_padded_convolutions(frames):
    first, second = convolution(5, 6, 3, padding=1), convolution(6, 7, 3, stride=2, padding=1)
    x_BCT = torch.randn(3, 5, frames, dtype=torch.float64)
    expected_BTN = nn.functional.gelu(second(nn.functional.gelu(first(x_BCT)))).transpose(1, 2)
    found_BTN = PaddedProducts([first, second])(x_BCT.transpose(1, 2))
    torch.testing.assert_close(found_BTN, expected_BTN, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "grouped", "padded"])
def test_products_of_bfloat16_are_as_near_as_the_convolution(kind):
    """Sums in float32, rounded once."""
    groups = 4 if kind == "grouped" else 1
    padding = {"plain": 0, "grouped": 4, "padded": 1}[kind]
    exact = convolution(64, 64, 8 if kind == "grouped" else 3, padding=padding, groups=groups)
    x_BTC = torch.randn(2, 50, 64, dtype=torch.float64)
    rough = nn.Conv1d(64, 64, exact.kernel_size, padding=padding, groups=groups).requires_grad_(False)
    rough.load_state_dict(exact.state_dict())
    rough.bfloat16()
    # What is exact is the sum over rounded weights and inputs.
    exact.load_state_dict(rough.state_dict())
    x_BTC = x_BTC.bfloat16().double()
    if kind == "plain":
        found = ProductConvolution(rough)(x_BTC[0].bfloat16()) + rough.bias.float()
        expected = exact(x_BTC[0].t()).t()
    elif kind == "grouped":
        found, expected = GroupedProduct(rough)(x_BTC.bfloat16()), exact(x_BTC.transpose(1, 2))[..., :50]
        expected = expected.transpose(1, 2)
        assert found.dtype == torch.float32
    else:
        found = PaddedProducts([rough])(x_BTC.bfloat16())
        expected = nn.functional.gelu(exact(x_BTC.transpose(1, 2))).transpose(1, 2)
    assert (found.double() - expected).square().mean() / expected.square().mean() < 1e-5
