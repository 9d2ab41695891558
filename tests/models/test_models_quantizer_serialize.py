"""A quantizer as arrays and back, and checkpoints of others: of `multi_quantization`, and in SPEAR's form."""

import copy

import numpy as np
import pytest
import torch
from models_fakes import seeded

from mvqkd.models.quantizer import (
    Quantizer,
    load_reference_checkpoint,
    quantizer_from_arrays,
    quantizer_to_arrays,
)


def test_arrays_and_back():
    quantizer = seeded(12, 16, 3)
    arrays, metadata = quantizer_to_arrays(quantizer)
    assert metadata == {
        "id": quantizer.get_id(),
        "dim": 12,
        "num_codebooks": 3,
        "codebook_size": 16,
        "logprob_weight": 0.0,
        "prefix_weights": None,
    }
    back = quantizer_from_arrays(arrays)
    x = torch.randn(30, 12)
    assert torch.equal(back.encode(x), quantizer.encode(x)) and back.get_id() == quantizer.get_id()
    with pytest.raises(ValueError, match=r"missing \['centers'\]"):
        quantizer_from_arrays({name: a for name, a in arrays.items() if name != "centers"})
    with pytest.raises(ValueError, match="does not fit together"):
        quantizer_from_arrays({**arrays, "to_logits.bias": np.zeros(5, np.float32)})
    with pytest.raises(ValueError, match=r"not \(N, K, D\)"):
        quantizer_from_arrays({**arrays, "centers": np.zeros(5, np.float32)})


def test_the_way_of_encoding_is_kept_and_named():
    torch.manual_seed(0)
    quantizer = Quantizer(12, 16, 3, logprob_weight=0.5, prefix_weights=[0.2, 0.0, 1.0]).eval()
    back = quantizer_from_arrays(*quantizer_to_arrays(quantizer))
    assert (back.logprob_weight, back.prefix_weights) == (0.5, (0.2, 0.0, 1.0))
    x = torch.randn(100, 12)
    codes = quantizer.encode(x)
    assert torch.equal(back.encode(x), codes) and torch.equal(copy.deepcopy(quantizer).encode(x), codes)
    plain = quantizer_from_arrays(quantizer_to_arrays(quantizer)[0])
    assert not torch.equal(plain.encode(x), codes)
    assert plain.set_id_from_weights() != quantizer.set_id_from_weights()
    for wrong in ({"logprob_weight": -1.0}, {"prefix_weights": [1.0]}, {"prefix_weights": [1.0, 1.0, 0.0]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Quantizer(12, 16, 3, **wrong)


def test_wrong_checkpoint_files_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "linear.pt")
    torch.save(seeded(8, 16, 2), tmp_path / "module.pt")
    for name, message in [
        ("text.pt", "no checkpoint of plain tensors"),
        ("list.pt", "holds no state dict"),
        ("linear.pt", "unknown"),
        ("module.pt", "no checkpoint of plain tensors"),
    ]:
        with pytest.raises(ValueError, match=rf"{name}.* {message}"):
            load_reference_checkpoint(tmp_path / name)


MEAN_D = torch.linspace(-30, 40, 12)
STD_D = torch.logspace(-1, 2, 12)


def spear_file(tmp_path, mean, std, quantizer=None):
    quantizer = seeded(12, 16, 3) if quantizer is None else quantizer
    path = tmp_path / "spear.pt"
    torch.save({"quantizer": quantizer.state_dict(), "mean": mean, "std": std}, path)
    return quantizer, path


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (MEAN_D, STD_D),
        (MEAN_D.half(), STD_D.half()),
        (MEAN_D.unsqueeze(0), STD_D.unsqueeze(0)),
        (MEAN_D, torch.tensor(7.0)),
        (torch.tensor([3.0]), torch.tensor([0.2])),
        (1.5, 4),
    ],
)
def test_spears_normalization_is_folded_in(tmp_path, mean, std):
    inner, path = spear_file(tmp_path, mean, std)
    with torch.no_grad():
        inner.centers_scale.fill_(0.04)
        inner.logits_scale.fill_(-0.03)
        inner.to_logits.bias.normal_()
    inner, path = spear_file(tmp_path, mean, std, inner)
    folded = load_reference_checkpoint(path)
    mean, std = (torch.as_tensor(v).float().reshape(-1) for v in (mean, std))
    x = inner.decode(torch.randint(16, (400, 3))).detach() + 0.1 * torch.randn(400, 12)
    x = x * std + mean
    inside = (x - mean) / std
    codes = inner.encode(inside, as_bytes=False)
    torch.testing.assert_close(folded.decode(codes), inner.decode(codes) * std + mean, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(folded._logits(x), inner._logits(inside), rtol=1e-3, atol=1e-3)
    # The codes are the quantizer's own too, searched for and guessed.
    assert (folded.encode(x, as_bytes=False) == codes).all(dim=1).float().mean() > 0.99
    assert (folded.encode(x, 0) == inner.encode(inside, 0)).all(dim=1).float().mean() > 0.99
    assert (folded.channel_weights is None) == (std.numel() == 1)
    assert folded.get_id() != inner.get_id() and not folded.training
    back = quantizer_from_arrays(*quantizer_to_arrays(folded))
    assert torch.equal(back.encode(x), folded.encode(x)) and back.get_id() == folded.get_id()
    assert back.set_id_from_weights() == folded.get_id()


def test_what_the_weights_of_channels_are_for(tmp_path):
    """Without them the largest channel decides alone, and most codes are others."""
    _, path = spear_file(tmp_path, MEAN_D, STD_D)
    folded = load_reference_checkpoint(path)
    plain = Quantizer.of_weights(folded.state_dict()).eval()
    x = torch.randn(400, 12) * 0.3 * STD_D + MEAN_D

    def errors(quantizer):
        error_BD = x - quantizer.decode(quantizer.encode(x)).detach()
        return (error_BD / STD_D).square().sum(), error_BD.square().sum()

    (within, outside), (plain_within, plain_outside) = errors(folded), errors(plain)
    assert within < 0.7 * plain_within and plain_outside < outside
    part = folded.first(2)
    assert part.channel_weights == folded.channel_weights
    assert plain.set_id_from_weights() != folded.get_id()


def test_spears_form_without_a_normalization(tmp_path):
    inner, path = spear_file(tmp_path, None, None)
    loaded = load_reference_checkpoint(path)
    assert loaded.get_id() == inner.get_id() and loaded.channel_weights is None
    assert all(torch.equal(t, inner.state_dict()[name]) for name, t in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": ...}, r"missing \['std'\], unknown \[\]; it takes quantizer"),
        ({"var": torch.ones(12)}, r"unknown \['var'\]"),
        ({"mean": None}, "mean is NoneType"),
        ({"std": "1"}, "std is str"),
        ({"std": torch.ones(13)}, r"std has shape \(13,\); the quantizer has 12 channels"),
        ({"mean": torch.ones(3, 4)}, r"mean has shape \(3, 4\)"),
        ({"mean": torch.ones(0)}, r"mean has shape \(0,\)"),
        ({"std": torch.tensor([1.0] * 11 + [0.0])}, r"std is not above 0 in channels \[11\]"),
        ({"std": 0.0}, "std is not above 0"),
        ({"std": -STD_D}, "std is not above 0"),
        ({"std": torch.full((12,), float("nan"))}, "std holds NaN or infinity"),
        ({"mean": torch.tensor(float("inf")).half()}, "mean holds NaN or infinity in channels"),
        ({"quantizer": torch.ones(3)}, "quantizer holds no state dict but Tensor"),
        ({"quantizer": {"centers": torch.ones(2, 4, 12)}}, "quantizer is no quantizer: missing"),
    ],
)
def test_spears_form_that_cannot_be(tmp_path, change, message):
    _, path = spear_file(tmp_path, MEAN_D, STD_D)
    state = torch.load(path, weights_only=True) | change
    torch.save({name: value for name, value in state.items() if value is not ...}, path)
    with pytest.raises(ValueError, match=rf"spear.pt.*{message}"):
        load_reference_checkpoint(path)


def test_spears_form_is_read_as_tensors_alone(tmp_path):
    path = tmp_path / "module.pt"
    torch.save({"quantizer": seeded(8, 16, 2), "mean": None, "std": None}, path)
    with pytest.raises(ValueError, match=r"module.pt is no checkpoint of plain tensors"):
        load_reference_checkpoint(path)


def test_weights_of_channels_that_cannot_be():
    for wrong in ([1.0] * 11, [0.0] * 12, [float("inf")] * 12):
        with pytest.raises(ValueError, match="channel_weights: give 12 finite numbers above 0"):
            Quantizer(12, 16, 3, channel_weights=wrong)
