"""Student and codebook loss together."""

import math

import pytest
import torch
from torch import Tensor

from mvqkd.models.alignment import IGNORE
from mvqkd.models.distillation.heads import CodesHead
from mvqkd.models.distillation.model import AttachedHead, DistillationModel, Losses
from mvqkd.models.distillation.tap import tapped
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.conformer import subsampled_length
from mvqkd.models.students.transducer import ConformerTransducer

CONFIG = StudentConfig(
    encoder_dim=16,
    num_layers=3,
    num_heads=2,
    ffn_dim=32,
    conv_kernel=5,
    dropout=0.0,
    predictor_dim=8,
    joiner_dim=16,
)
FRAMES = 50


Batch = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]


def make_model(*, layer: int = 2, scale: float = 0.5, ctc_scale: float = 0.0) -> DistillationModel:
    torch.manual_seed(0)
    student = ConformerTransducer(CONFIG, 6, ctc_scale=ctc_scale)
    return DistillationModel(
        student, {"codes": AttachedHead(layer=layer, scale=scale, head=CodesHead(16, 4, 16))}
    )


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    frames = subsampled_length(FRAMES)
    targets_BSK = torch.randint(0, 16, (2, frames, 4), generator=generator)
    lengths_B = torch.tensor([FRAMES, 30])
    targets_BSK[1, subsampled_length(30) :] = IGNORE
    units_BU, unit_lengths_B = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    features_BTF = torch.randn(2, FRAMES, 80, generator=generator)
    return features_BTF, lengths_B, units_BU, unit_lengths_B, {"codes": targets_BSK}


def losses_of(model: DistillationModel, batch: Batch) -> Losses:
    losses = model(*batch)
    assert isinstance(losses, Losses)
    return losses


def test_total_is_the_scaled_sum_for_each_frame() -> None:
    model = make_model(ctc_scale=0.3).eval()
    batch = make_batch()
    losses = losses_of(model, batch)
    frames = subsampled_length(FRAMES) + subsampled_length(30)
    assert (losses.num_frames, losses.heads["codes"].count) == (frames, frames * 4)
    encoded_BSD, lengths_B = model.student.encoder(batch[0], batch[1])
    transducer = model.student.transducer_loss(encoded_BSD, lengths_B, batch[2], batch[3])
    ctc = model.student.ctc_loss(encoded_BSD, lengths_B, batch[2], batch[3])
    torch.testing.assert_close(losses.parts, {"transducer": transducer.detach(), "ctc": ctc.detach()})
    # The cross-entropy of the codes, written down: linear in the output of layer 2.
    with tapped(model.student, [2]) as taps:
        model.student.encoder(batch[0], batch[1])
        tapped_BSC = taps[2].detach()
    weight_KVC, bias_KV = (p.detach() for p in model.heads["codes"].parameters())
    logprob_BSKV = (torch.einsum("bsc,kvc->bskv", tapped_BSC, weight_KVC) + bias_KV).log_softmax(-1)
    codes_BSK = batch[4]["codes"]
    chosen_BSK = logprob_BSKV.gather(-1, codes_BSK.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    codes_loss = -chosen_BSK[codes_BSK >= 0].sum()
    torch.testing.assert_close(losses.heads["codes"].loss, codes_loss)
    torch.testing.assert_close(
        losses.total.detach(), (transducer + 0.3 * ctc + 0.5 * codes_loss).detach() / frames
    )
    assert losses.total.requires_grad
    assert not any(t.requires_grad for t in (*losses.parts.values(), losses.heads["codes"].loss))


@pytest.mark.parametrize(
    ("ctc_scale", "training", "total", "transducer", "codes"),
    [
        (0.0, True, 7.6500396728515625, 27.467159271240234, 205.16702270507812),
        (0.0, False, 7.685370922088623, 28.43553924560547, 204.43153381347656),
        (0.3, True, 8.374763488769531, 27.467159271240234, 217.40867614746094),
        (0.3, False, 8.32004165649414, 28.43553924560547, 213.7152862548828),
    ],
)
def test_losses_are_those_of_before_there_were_heads(ctc_scale, training, total, transducer, codes) -> None:
    """Recorded when the model knew the Conformer alone: a seed gives the same weights and losses."""
    model = make_model(ctc_scale=ctc_scale)
    if not training:
        losses_of(model.train(), make_batch())  # the recording had moved the statistics of the batch norms
    losses = losses_of(model.train(training), make_batch())
    found = (losses.total, losses.parts["transducer"], losses.heads["codes"].loss)
    assert [float(t.detach()) for t in found] == pytest.approx([total, transducer, codes], rel=1e-6)


def test_codebook_loss_starts_near_chance_and_can_be_learned() -> None:
    model, batch = make_model(), make_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(40):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(float(losses.heads["codes"].loss) / losses.heads["codes"].count)
    assert history[0] == pytest.approx(math.log(16), abs=0.8)
    assert history[-1] < 0.5 * history[0]


def test_codes_reach_the_lower_layers_only() -> None:
    model, batch = make_model(), make_batch()
    model.train()
    with tapped(model.student, [2]) as taps:
        model.student.loss(*batch[:4])
        model.heads["codes"](taps[2], batch[4]["codes"]).loss.backward()
    layers = model.student.encoder.layers
    assert layers[1].ffn1.sequential[1].weight.grad is not None
    assert layers[2].ffn1.sequential[1].weight.grad is None


def test_without_distillation_there_is_no_head() -> None:
    torch.manual_seed(0)
    model = DistillationModel(ConformerTransducer(CONFIG, 6))
    for name, tensor in make_model().student.state_dict().items():
        assert torch.equal(tensor, model.student.state_dict()[name]), name
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"student"}
    *batch, _ = make_batch()
    losses = model(*batch, {})
    assert losses.heads == {} and set(losses.parts) == {"transducer"}
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_student_layer_that_there_is_not() -> None:
    for layer in (0, 4):
        with pytest.raises(
            ValueError, match=f"student_layer {layer} is not one of the student's 3 encoder layers"
        ):
            make_model(layer=layer)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_factor_that_cannot_be(scale: float) -> None:
    with pytest.raises(ValueError, match=r"codes: a factor of .* is not above 0; leave the head out"):
        make_model(scale=scale)


def test_targets_that_are_missing_or_do_not_fit() -> None:
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match=r"no targets for the heads \['codes'\]; there are \['other'\]"):
        model(*batch[:4], {"other": batch[4]["codes"]})
    with pytest.raises(ValueError, match="do not fit"):
        model(*batch[:4], {"codes": batch[4]["codes"][:, 1:]})
    assert not any(module._forward_hooks for module in model.modules())
