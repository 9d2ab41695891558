"""What a quantizer is judged by."""

import pytest
import torch

from mvqkd.models.quantizer import rrl, usage_entropy_bits


def test_rrl_in_blocks_is_the_rrl(monkeypatch):
    x, x_hat = torch.randn(1000, 12) + 5, torch.randn(1000, 12) + 5
    exact = x.double()
    error = (exact - x_hat.double()).square().sum()
    expected = float(error / ((exact - exact.mean(dim=0)).square().sum() + 1e-20))
    # To the bit where one block holds all, as for every utterance: this figure is in the tables.
    assert rrl(x, x_hat) == expected
    mean = torch.randn(12)
    with_mean = rrl(x, x_hat, mean=mean)
    assert with_mean == float(error / ((exact - mean.double()).square().sum() + 1e-20))
    monkeypatch.setattr("mvqkd.models.quantizer.metrics.ROWS_PER_BLOCK", 64)
    assert rrl(x, x_hat) == pytest.approx(expected, rel=1e-12)
    assert rrl(x, x_hat, mean=mean) == pytest.approx(with_mean, rel=1e-12)
    assert rrl(x.view(10, 100, 12), x_hat.view(10, 100, 12)) == rrl(x, x_hat)


def test_rrl_and_usage_entropy():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert rrl(x, x) == 0
    assert rrl(x, x.mean(dim=0).expand(2, 2)) == pytest.approx(1)
    assert rrl(x, x + 1, mean=torch.zeros(2)) == pytest.approx(1)
    with pytest.raises(ValueError, match="must be equal"):
        rrl(x, x[:1])
    codes = torch.tensor([[0, 1], [1, 1], [2, 1], [3, 1]], dtype=torch.uint8)
    torch.testing.assert_close(usage_entropy_bits(codes, 16), torch.tensor([2.0, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        usage_entropy_bits(codes, 2)
    with pytest.raises(ValueError, match="no codes"):
        usage_entropy_bits(codes[:0], 16)
