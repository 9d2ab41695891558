"""Products of whole numbers: exact in any order, near the real ones, whatever the frame's size."""

import pytest
import torch

from mvqkd.models.quantizer.search import byte_products
from mvqkd.models.quantizer.search.byte_products import ByteProducts, multiplies_bytes


def of_floats(linear_DM: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> ByteProducts:
    with monkeypatch.context() as patch:
        patch.setattr(byte_products, "multiplies_bytes", lambda: False)
        return ByteProducts.of(linear_DM)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 7, 80, 512, 1280])
def test_bytes_and_floats_give_the_same_bits(dim, monkeypatch):
    """So a table does not depend on which processor made it."""
    linear, bias, x = drawn(dim, 128), drawn(128, seed=1), drawn(50, dim, seed=2) * 7
    found = of_floats(linear, monkeypatch).add_to(bias, x)
    assert torch.equal(ByteProducts.of(linear).add_to(bias, x), found)
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ByteProducts.of(linear[order]).add_to(bias, x[:, order]), found)
    assert torch.equal(ByteProducts.of(linear).add_to(bias, x[10:13]), found[10:13])


@pytest.mark.skipif(not multiplies_bytes(), reason="this CPU has no instructions for products of bytes")
def test_bytes_are_used_where_the_processor_multiplies_them():
    assert ByteProducts.of(drawn(8, 8)).weight_DM.dtype == torch.int8


def test_they_are_near_the_real_products():
    linear, bias, x = drawn(512, 256), drawn(256, seed=1), drawn(100, 512, seed=2)
    error = ByteProducts.of(linear).add_to(bias, x) - (bias + x @ linear)
    assert float(error.square().mean().sqrt()) < 0.02 * float((x @ linear).std())


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e20])
def test_the_size_of_a_frame_or_a_center_does_not_matter(factor):
    linear, bias, x = drawn(64, 32), torch.zeros(32), drawn(20, 64, seed=2)
    found = ByteProducts.of(linear).add_to(bias, x)
    torch.testing.assert_close(ByteProducts.of(linear).add_to(bias, x * factor) / factor, found)
    scaled = linear.clone()
    scaled[:, 5] *= factor
    both = ByteProducts.of(scaled).add_to(bias, x)
    torch.testing.assert_close(both[:, 5] / factor, found[:, 5])
    assert torch.equal(both[:, :5], found[:, :5])


def test_zeros_cost_the_bias():
    linear, bias = drawn(16, 8), drawn(8, seed=1)
    linear[:, 3] = 0.0
    found = ByteProducts.of(linear).add_to(bias, torch.zeros(2, 16))
    assert torch.equal(found, bias.expand(2, 8))
    assert torch.equal(ByteProducts.of(linear).add_to(bias, drawn(2, 16))[:, 3], bias[3].expand(2))
