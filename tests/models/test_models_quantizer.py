"""The quantizer against the installed peer, and encoding as a function of the frame."""

import copy

import numpy as np
import pytest
import torch
from models_fakes import seeded, squared_error

from mvqkd.models.quantizer import (
    Quantizer,
    load_reference_checkpoint,
    quantizer_from_arrays,
    quantizer_to_arrays,
    rrl,
    usage_entropy_bits,
)
from mvqkd.models.quantizer.search.tables import SearchTables

CHECKPOINT = "quantizers/multi_quantization-0.1.1_whisper-base_8x256.pt"


def peer_and_ours(dim=24, codebook_size=16, num_codebooks=4):
    multi_quantization = pytest.importorskip("multi_quantization")
    torch.manual_seed(0)
    peer = multi_quantization.Quantizer(dim, codebook_size, num_codebooks)
    with torch.no_grad():
        peer.centers.normal_()
        peer.logits_scale.fill_(0.03)
        peer.centers_scale.fill_(-0.05)
    ours = Quantizer(dim, codebook_size, num_codebooks)
    ours.load_state_dict(peer.state_dict())
    return peer, ours


def test_state_dict_is_the_peers():
    peer, ours = peer_and_ours()
    theirs = {name: (tuple(t.shape), t.dtype) for name, t in peer.state_dict().items()}
    assert {name: (tuple(t.shape), t.dtype) for name, t in ours.state_dict().items()} == theirs
    assert ours.get_id() == peer.get_id()
    assert ours.show_init_invocation() == peer.show_init_invocation()


def test_values_are_the_peers():
    peer, ours = peer_and_ours()
    x = torch.randn(3, 7, 24)
    codes = torch.randint(16, (3, 7, 4))
    torch.testing.assert_close(ours.decode(codes), peer.decode(codes), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.get_centers(), peer.get_centers())
    torch.testing.assert_close(ours.get_data_mean(), peer.get_data_mean())
    torch.testing.assert_close(ours.compute_codebook_correlations(), peer.compute_codebook_correlations())
    assert torch.equal(ours.encode(x, 0), peer.encode(x, 0))
    assert torch.equal(ours.encode(x, 0, as_bytes=False), peer.encode(x, 0, as_bytes=False))


def test_loss_and_gradients_are_the_peers():
    peer, ours = peer_and_ours()
    x = torch.randn(5, 9, 24)
    theirs, own = peer.compute_loss(x, 0), ours.compute_loss(x, 0)
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b)
    sum(theirs[:3]).backward()
    sum(own[:3]).backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), peer.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_product_quantizer_is_the_peers():
    peer, ours = peer_and_ours()
    theirs, own = peer.get_product_quantizer().state_dict(), ours.get_product_quantizer().state_dict()
    for name in theirs.keys() - {"id_buf"}:
        torch.testing.assert_close(own[name], theirs[name])


def test_product_quantizer_needs_pairs():
    with pytest.raises(ValueError, match="3 codebooks cannot be paired"):
        Quantizer(8, 16, 3).get_product_quantizer()


def test_search_is_no_worse_than_the_peers_on_its_codebooks():
    peer, ours = peer_and_ours(dim=32, codebook_size=16, num_codebooks=8)
    x = torch.randn(400, 32) * 2
    with torch.no_grad():
        theirs = squared_error(ours, x, peer.encode(x, 5, as_bytes=False)).sum()
    assert squared_error(ours, x, ours.encode(x, 5)).sum() <= theirs


@pytest.mark.shared
def test_real_checkpoint_decodes_to_the_peers_values(shared):
    multi_quantization = pytest.importorskip("multi_quantization")
    quantizer = load_reference_checkpoint(shared / CHECKPOINT)
    peer = multi_quantization.Quantizer(512, 256, 8)
    peer.load_state_dict(torch.load(shared / CHECKPOINT, weights_only=True))
    codes = torch.randint(256, (200, 8))
    assert (quantizer.decode(codes) - peer.decode(codes)).abs().max() <= 1e-5
    assert quantizer.get_id() == peer.get_id()
    x = peer.decode(codes[:64]).detach() + torch.randn(64, 512)
    with torch.no_grad():
        theirs = squared_error(quantizer, x, peer.encode(x)).sum()
    assert squared_error(quantizer, x, quantizer.encode(x)).sum() <= theirs * (1 + 1e-6)


@pytest.mark.parametrize(
    ("dim", "codebook_size", "num_codebooks"), [(64, 256, 8), (96, 256, 3), (64, 16, 17), (512, 16, 5)]
)
def test_codes_depend_on_the_frame_alone(dim, codebook_size, num_codebooks):
    quantizer = seeded(dim, codebook_size, num_codebooks)
    x = torch.randn(700, dim)
    codes = quantizer.encode(x)
    assert torch.equal(torch.cat([quantizer.encode(row) for row in x[:3].split(1)]), codes[:3])
    assert torch.equal(torch.cat([quantizer.encode(part) for part in x.split(101)]), codes)
    order = torch.randperm(700)
    assert torch.equal(quantizer.encode(x[order]), codes[order])
    assert torch.equal(quantizer.encode(x.view(7, 100, dim)), codes.view(7, 100, -1))
    copies = quantizer.encode(x[5].expand(300, dim))
    assert (copies == codes[5]).all()


def test_float32_agrees_with_float64_despite_a_large_common_offset():
    quantizer = seeded(64, 256, 4)
    offset = torch.randn(64) * 30
    with torch.no_grad():
        quantizer.centers += offset / 4
    x = torch.randn(500, 64) * 0.2 + offset
    exact = copy.deepcopy(quantizer).double()
    same = (quantizer.encode(x) == exact.encode(x)).all(dim=1)
    assert same.float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_encoded_in_float32(dtype):
    quantizer = seeded(64, 16, 4)
    x = torch.randn(40, 64).to(dtype)
    assert torch.equal(quantizer.encode(x), quantizer.encode(x.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(x), quantizer.encode(x.float()))


def test_products_are_not_rounded_to_tf32(monkeypatch):
    """Whatever the process allows, and it is put back afterwards."""
    matmul = torch.backends.cuda.matmul
    seen = []
    real = SearchTables.entry_costs
    monkeypatch.setattr(
        SearchTables,
        "entry_costs",
        lambda *given, **more: seen.append(matmul.fp32_precision) or real(*given, **more),
    )
    quantizer = seeded(16, 16, 2)
    allowed = matmul.fp32_precision
    try:
        for precision in ("tf32", "ieee", allowed):
            matmul.fp32_precision = precision
            quantizer.encode(torch.randn(4, 16))
            assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = allowed
    assert seen == ["ieee"] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_by_row(bad):
    quantizer = seeded(16, 16, 2)
    x = torch.randn(20, 16)
    x[3, 1] = x[17, 0] = bad
    with pytest.raises(ValueError, match=r"2 of 20 frames \(rows 3, 17\)"):
        quantizer.encode(x)


def test_wrong_input_is_refused():
    quantizer = seeded(16, 16, 2)
    with pytest.raises(ValueError, match=r"takes floats \(\*, 16\)"):
        quantizer.encode(torch.randn(4, 15))
    with pytest.raises(ValueError, match="codes lie in -100"):
        quantizer.decode(torch.full((3, 2), -100))
    with pytest.raises(ValueError, match="codes have 5 columns"):
        quantizer.decode(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="as_bytes=False"):
        Quantizer(8, 512, 1).encode(torch.randn(1, 8))
    with pytest.raises(ValueError, match="power of two"):
        Quantizer(8, 100, 1)
    with pytest.raises(ValueError, match="at least 1"):
        Quantizer(8, 16, 0)


@pytest.mark.parametrize(
    ("codebook_size", "num_codebooks", "columns"), [(16, 4, 2), (4, 4, 1), (16, 3, 3), (256, 3, 3)]
)
def test_bytes_decode_to_the_same(codebook_size, num_codebooks, columns):
    quantizer = seeded(16, codebook_size, num_codebooks)
    x = torch.randn(2, 11, 16)
    packed = quantizer.encode(x)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 11, columns)
    torch.testing.assert_close(
        quantizer.decode(packed), quantizer.decode(quantizer.encode(x, as_bytes=False))
    )


def test_no_frames_have_no_codes():
    assert seeded(16, 16, 4).encode(torch.zeros(2, 0, 16), as_bytes=False).shape == (2, 0, 4)


def test_tables_follow_the_centers():
    quantizer = seeded(16, 16, 4)
    x = torch.randn(60, 16)
    quantizer.encode(x)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1, fused=True)
    quantizer.compute_loss(x, 1)[0].backward()
    optimizer.step()
    assert torch.equal(quantizer.encode(x), copy.deepcopy(quantizer).encode(x))
    quantizer.centers.data.mul_(-1)
    assert torch.equal(quantizer.encode(x), copy.deepcopy(quantizer).encode(x))


def test_id_follows_seed_and_weights():
    one, same, other = seeded(8, 16, 2), seeded(8, 16, 2), seeded(8, 16, 2, seed=1)
    assert one.get_id() == same.get_id() != other.get_id()
    assert one.set_id_from_weights() == same.set_id_from_weights() == one.get_id()
    with torch.no_grad():
        same.centers_scale += 0.1
    assert same.set_id_from_weights() != one.get_id()


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


def test_the_first_codebooks_alone():
    quantizer = seeded(12, 16, 4)
    codes = torch.randint(16, (20, 4))
    centers = quantizer.get_centers()
    expected = centers[0, codes[:, 0]] + centers[1, codes[:, 1]]
    part = quantizer.first(2)
    torch.testing.assert_close(part.decode(codes[:, :2]), expected)
    assert part.get_id() != quantizer.get_id() and not part.training
    ordered = Quantizer(12, 16, 4, prefix_weights=[1.0, 1.0, 0.0, 1.0]).eval()
    assert ordered.first(2).prefix_weights == (1.0, 1.0) and ordered.first(3).prefix_weights is None
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="has 4 codebooks"):
            quantizer.first(wrong)


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


@pytest.mark.gpu
def test_codes_depend_on_the_frame_alone_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    quantizer = seeded(64, 256, 8).cuda()
    x = torch.randn(5000, 64, device="cuda")
    codes = quantizer.encode(x)
    assert torch.equal(torch.cat([quantizer.encode(part) for part in x.split(777)]), codes)
    on_cpu = copy.deepcopy(quantizer).cpu().encode(x.cpu())
    assert (on_cpu == codes.cpu()).all(dim=1).float().mean() > 0.99
