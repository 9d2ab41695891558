"""Codes and RRL of many utterances at once are those of each."""

import pytest
import torch
from models_fakes import seeded

from mvqkd.models.quantizer import Coder, FitConfig, fit_quantizer, rrl, rrl_of_each

LENGTHS = (3, 300, 1, 0, 41)


def frames_of(dim=12, lengths=LENGTHS):
    return torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(3)) + 2.0


def each_rrl(x, x_hat, mean):
    parts = zip(x.split(LENGTHS), x_hat.split(LENGTHS), strict=True)
    return torch.tensor([rrl(*pair, mean=mean) for pair in parts], dtype=torch.float64)


def test_rrl_of_each_is_the_rrl_of_each():
    x, x_hat, mean = frames_of(), frames_of() + 0.1 * torch.randn(345, 12), torch.randn(12)
    found = rrl_of_each(x, x_hat, torch.tensor(LENGTHS), mean)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, each_rrl(x, x_hat, mean), rtol=1e-6, atol=0)
    # One that is not finite is alone in that.
    x[3] = torch.nan
    assert rrl_of_each(x, x_hat, torch.tensor(LENGTHS), mean).isnan().tolist() == [False, True, *[False] * 3]


def test_coder_is_the_quantizer():
    quantizer, x = seeded(12, 16, 4), frames_of()
    with torch.no_grad():
        quantizer.centers_scale.fill_(0.01)
    codes, found = Coder(quantizer)(x, torch.tensor(LENGTHS))
    expected = quantizer.encode(x, as_bytes=False)
    assert codes.dtype == torch.uint8 and torch.equal(codes.long(), expected)
    theirs = each_rrl(x, quantizer.decode(expected).detach(), quantizer.get_data_mean())
    assert not found.requires_grad
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=0)
    half_codes, _ = Coder(quantizer)(x.half(), torch.tensor(LENGTHS))
    assert torch.equal(half_codes.long(), quantizer.encode(x.half(), as_bytes=False))


def test_fast_codes_are_a_little_worse_and_of_the_frame_alone():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    config = FitConfig(num_codebooks=4, codebook_size=16, anneal_rounds=4)
    quantizer = fit_quantizer(x, valid=x[:200], config=config).quantizer
    codes, found = Coder(quantizer, search="fast")(x, torch.tensor([2000]))
    _, best = Coder(quantizer)(x, torch.tensor([2000]))
    assert float(best) < float(found) < 1.1 * float(best)
    part, _ = Coder(quantizer, search="fast")(x[700:705], torch.tensor([5]))
    assert torch.equal(part, codes[700:705])
    # The switches of the process are as they were.
    product = x @ x.t()
    torch.testing.assert_close(product.double(), x.double() @ x.double().t(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_cannot_be_coded_costs_its_own_utterance(bad):
    quantizer, x = seeded(12, 16, 5), frames_of()
    coder, lengths = Coder(quantizer), torch.tensor(LENGTHS)
    codes, found = coder(x, lengths)
    spoilt = x.clone()
    spoilt[10, 4] = bad
    others = torch.arange(len(x)) != 10
    bad_codes, bad_rrl = coder(spoilt, lengths)
    assert torch.equal(bad_codes[others], codes[others]) and int(bad_codes.max()) < 16
    assert bad_rrl.isnan().tolist() == [False, True, False, False, False]
    torch.testing.assert_close(bad_rrl[[0, 2, 3, 4]], found[[0, 2, 3, 4]], rtol=0, atol=0)


def test_coder_of_large_codebooks_and_refusals():
    codes, _ = Coder(seeded(4, 512, 2))(torch.randn(3, 4), torch.tensor([3]))
    assert codes.dtype == torch.int64
    quantizer = seeded(4, 16, 4)
    with pytest.raises(ValueError, match="search 'quick' is unknown: choose one of full, fast"):
        Coder(quantizer, search="quick")
    for wrong in (torch.zeros(2, 5), torch.zeros(4), torch.zeros(2, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"this quantizer takes floats \(F, 4\)"):
            Coder(quantizer)(wrong, torch.tensor([2]))


def test_coder_of_no_frames():
    codes, found = Coder(seeded(4, 16, 2))(torch.zeros(0, 4), torch.tensor([0]))
    assert codes.shape == (0, 2) and found.tolist() == [0.0]
