"""The quantizer against the installed peer, `multi_quantization`."""

import pytest
import torch
from models_fakes import squared_error

from mvqkd.models.quantizer import Quantizer, load_reference_checkpoint

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
