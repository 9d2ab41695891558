"""The codebook loss against the installed peer."""

import pytest
import torch

from mvqkd.models.joint_loss import JointCodebookLoss

multi_quantization = pytest.importorskip("multi_quantization")

SIZES = {"predictor_channels": 12, "num_codebooks": 4, "hidden_channels": 20, "codebook_size": 16}


def batch(ignored=True):
    torch.manual_seed(1)
    predictor = torch.randn(3, 7, 12)
    codes = torch.randint(16, (3, 7, 4))
    if ignored:
        codes[1, 4:] = -100
    return predictor, codes


@pytest.mark.parametrize("is_joint", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_loss_and_gradients_are_the_peers(is_joint, reduction, checkpoint):
    torch.manual_seed(0)
    # The peer's own checkpointing cannot be used with its unused parameters under "none".
    peer = multi_quantization.JointCodebookLoss(
        **SIZES, reduction=reduction, is_joint=is_joint, checkpoint=False
    )
    with torch.no_grad():
        peer.linear2_bias.normal_()
    ours = JointCodebookLoss(**SIZES, reduction=reduction, is_joint=is_joint, checkpoint=checkpoint)
    ours.load_state_dict(peer.state_dict())
    predictor, codes = batch()
    theirs_in, ours_in = predictor.clone().requires_grad_(), predictor.clone().requires_grad_()
    theirs, own = peer(theirs_in, codes), ours(ours_in, codes)
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)
    theirs.sum().backward()
    own.sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-4, atol=1e-5)
    theirs_by_name = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_by_name[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_joint", [True, False])
@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_every_parameter_gets_a_gradient(is_joint, num_codebooks):
    loss = JointCodebookLoss(12, num_codebooks, codebook_size=16, is_joint=is_joint)
    loss(torch.randn(5, 12), torch.randint(16, (5, num_codebooks), dtype=torch.uint8)).backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_state_dict_of_the_joint_mode_is_the_peers():
    theirs = multi_quantization.JointCodebookLoss(**SIZES).state_dict()
    own = JointCodebookLoss(**SIZES).state_dict()
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in theirs.items()}


def test_independent_reference_weights_load_inside_a_larger_model():
    peer = torch.nn.ModuleDict({"loss": multi_quantization.JointCodebookLoss(**SIZES, is_joint=False)})
    ours = torch.nn.ModuleDict({"loss": JointCodebookLoss(**SIZES, is_joint=False)})
    ours.load_state_dict(peer.state_dict())
    assert set(ours.state_dict()) == {"loss.linear2b_weight", "loss.linear2_bias"}
    with pytest.raises(RuntimeError, match="Unexpected"):
        ours.load_state_dict({**ours.state_dict(), "loss.other": torch.zeros(1)})


@pytest.mark.parametrize("is_joint", [True, False])
def test_ignored_frames_do_not_count(is_joint):
    loss = JointCodebookLoss(**SIZES, is_joint=is_joint)
    predictor, codes = batch()
    kept = codes[..., 0] >= 0
    torch.testing.assert_close(loss(predictor, codes), loss(predictor[kept], codes[kept]))


def test_codes_after_ignored_ones_are_predicted_without_them():
    """The first frame of an utterance may have the codes of the second of two teacher frames alone."""
    loss = JointCodebookLoss(**SIZES, reduction="none")
    predictor, codes = batch(ignored=False)
    partly = codes.clone()
    partly[..., :2] = -100
    found = loss(predictor, partly).view(3, 7, 4)
    assert (found[..., :2] == 0).all()
    # Code 2 from the student's output alone, written down.
    hidden = loss.linear1(predictor).relu()
    logits = (
        predictor @ loss.linear2b_weight[2].t() + hidden @ loss.linear2_weight[2].t() + loss.linear2_bias[2]
    )
    expected = torch.nn.functional.cross_entropy(
        logits.view(-1, 16), codes[..., 2].flatten(), reduction="none"
    )
    torch.testing.assert_close(found[..., 2].flatten(), expected)


def test_code_n_is_predicted_from_earlier_codes_only():
    loss = JointCodebookLoss(**SIZES, reduction="none")
    predictor, codes = batch(ignored=False)
    changed = codes.clone()
    changed[..., 2] = (changed[..., 2] + 1) % 16
    a, b = (loss(predictor, c).view(3, 7, 4) for c in (codes, changed))
    torch.testing.assert_close(a[..., :2], b[..., :2])
    assert not torch.allclose(a[..., 3], b[..., 3])


def test_loss_without_gradients_is_the_same():
    loss = JointCodebookLoss(**SIZES)
    with_grad = loss(*batch())
    with torch.no_grad():
        torch.testing.assert_close(loss(*batch()), with_grad)


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="impossible sizes"):
        JointCodebookLoss(12, 0)
    with pytest.raises(ValueError, match="reduction='max'"):
        JointCodebookLoss(12, 4, reduction="max")
    with pytest.raises(ValueError, match="ignore_index=0"):
        JointCodebookLoss(12, 4, ignore_index=0)
    with pytest.raises(ValueError, match="do not fit"):
        JointCodebookLoss(**SIZES)(torch.randn(3, 12), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="4 codebooks"):
        JointCodebookLoss(**SIZES)(torch.randn(3, 12), torch.zeros(3, 8))
