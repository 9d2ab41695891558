"""WavLM's attention in one fused operation is that of transformers."""

import pytest
import torch
from models_teachers import make_model
from torch import nn
from transformers import WavLMConfig
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from mvqkd.models.teachers.wavlm import GatedPositionAttention, PositionBias, use_fused_attention


def attention_of(dim: int = 64, heads: int = 4, **sizes: int) -> WavLMAttention:
    torch.manual_seed(0)
    attention = WavLMAttention(dim, heads, **sizes).eval()
    for name, parameter in attention.named_parameters():
        # Larger than usual, so that bias and gate contribute visibly.
        nn.init.normal_(parameter, std=1.0 if "rel" in name else 0.2)
    return attention


@pytest.mark.parametrize("lengths", [(37,), (37, 37), (37, 1, 20)])
def test_attention_is_that_of_transformers(lengths):
    theirs = attention_of()
    ours = GatedPositionAttention(theirs)
    x_BTD = torch.randn(len(lengths), max(lengths), 64)
    keep_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = None if bool(keep_BT.all()) else keep_BT
    with torch.inference_mode():
        expected, _, _ = theirs(x_BTD, attention_mask=mask)
        bias_HTT = PositionBias(theirs, torch.device("cpu"))(max(lengths))
        found, weights, passed_on = ours(x_BTD, attention_mask=mask, position_bias=bias_HTT)
        without, _, _ = ours(x_BTD, attention_mask=mask, position_bias=torch.zeros_like(bias_HTT))
    assert weights is None and passed_on is bias_HTT
    torch.testing.assert_close(found[keep_BT], expected[keep_BT], rtol=1e-5, atol=1e-5)
    assert (without[keep_BT] - expected[keep_BT]).abs().max() > 0.1


@pytest.mark.parametrize("frames", [1, 2, 50, 1_000])
@pytest.mark.parametrize(
    "sizes", [{"num_buckets": 320, "max_distance": 800}, {"num_buckets": 16, "max_distance": 9}]
)
def test_bias_is_that_of_transformers(frames, sizes):
    attention = attention_of(**sizes)
    with torch.inference_mode():
        found = PositionBias(attention, torch.device("cpu"))(frames)
        assert torch.equal(found, attention.compute_bias(frames, frames))


@pytest.mark.parametrize("variant", ["wavlm-base", "wavlm-large"])
def test_encoder_is_that_of_transformers(variant):
    """All layers, of which the first alone has the table of the bias."""
    model = make_model(variant)
    assert isinstance(model.config, WavLMConfig)
    x_BTD = torch.randn(2, 60, 32)
    keep_BT = torch.arange(60) < torch.tensor([60, 41])[:, None]

    def run(bias_HTT=None):
        x, states, passed_on = x_BTD, [], bias_HTT
        for layer in model.encoder.layers:
            x, passed_on = layer(x, attention_mask=keep_BT, position_bias=passed_on)
            states.append(x)
        return states

    with torch.inference_mode():
        expected = run()
        bias = use_fused_attention(model.encoder, torch.device("cpu"))
        for ours, theirs in zip(run(bias(60)), expected, strict=True):
            scale = float(theirs.abs().max())
            torch.testing.assert_close(ours[keep_BT] / scale, theirs[keep_BT] / scale, rtol=0, atol=1e-5)
