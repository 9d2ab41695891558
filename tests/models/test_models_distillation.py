"""Student and codebook loss together."""

import math

import pytest
import torch
from torch import Tensor

from mvqkd.models.alignment import IGNORE
from mvqkd.models.distillation.model import DistillationModel, Losses
from mvqkd.models.students.conformer import ConformerTransducer, StudentConfig, subsampled_length

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


def make_model(**changes: float) -> DistillationModel:
    settings = {
        "student_layer": 2,
        "codebooks_per_frame": 4,
        "codebook_size": 16,
        "loss_scale": 0.5,
        **changes,
    }
    torch.manual_seed(0)
    student = ConformerTransducer(CONFIG, 6, with_ctc=bool(settings.get("ctc_scale")))
    return DistillationModel(student, **settings)  # type: ignore[arg-type]


def make_batch() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    frames = subsampled_length(FRAMES)
    targets_BTK = torch.randint(0, 16, (2, frames, 4), generator=generator)
    lengths_B = torch.tensor([FRAMES, 30])
    targets_BTK[1, subsampled_length(30) :] = IGNORE
    units_BU, unit_lengths_B = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    return torch.randn(2, FRAMES, 80, generator=generator), lengths_B, units_BU, unit_lengths_B, targets_BTK


def losses_of(model: DistillationModel, batch: tuple[Tensor, ...]) -> Losses:
    losses = model(*batch)
    assert isinstance(losses, Losses)
    return losses


def test_total_is_the_scaled_sum_for_each_frame() -> None:
    model = make_model(ctc_scale=0.3).eval()
    batch = make_batch()
    losses = losses_of(model, batch)
    frames = subsampled_length(FRAMES) + subsampled_length(30)
    assert (losses.num_frames, losses.num_targets) == (frames, frames * 4)
    assert losses.codebook is not None
    encoded_BTD, lengths_B, _ = model.student.encoder(batch[0], batch[1])
    ctc = model.student.ctc_loss(encoded_BTD, lengths_B, batch[2], batch[3])
    expected = (losses.transducer + 0.3 * ctc + 0.5 * losses.codebook) / frames
    torch.testing.assert_close(losses.total, expected)
    assert losses.total.requires_grad and not losses.transducer.requires_grad


def test_codebook_loss_starts_near_chance_and_can_be_learned() -> None:
    model, batch = make_model(), make_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(40):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        assert losses.codebook is not None
        history.append(float(losses.codebook) / losses.num_targets)
    assert history[0] == pytest.approx(math.log(16), abs=0.8)
    assert history[-1] < 0.5 * history[0]


def test_codes_reach_the_lower_layers_only() -> None:
    model, batch = make_model(), make_batch()
    model.train()
    _, _, tapped_BTD = model.student.encoder(batch[0], batch[1], tap_layer=2)
    assert model.codebook_loss is not None
    model.codebook_loss(tapped_BTD, batch[4]).backward()
    layers = model.student.encoder.layers
    assert layers[1].ffn1.sequential[1].weight.grad is not None
    assert layers[2].ffn1.sequential[1].weight.grad is None


@pytest.mark.parametrize("changes", [{"loss_scale": 0.0}, {"codebooks_per_frame": 0}])
def test_without_distillation_there_is_no_head(changes: dict[str, float]) -> None:
    model = make_model(**changes)
    assert model.codebook_loss is None
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"student"}
    *batch, _ = make_batch()
    losses = losses_of(model, (*batch, None))  # type: ignore[arg-type]
    assert losses.codebook is None and losses.num_targets == 0
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_student_layer_that_there_is_not() -> None:
    for layer in (0, 4):
        with pytest.raises(
            ValueError, match=f"student_layer {layer} is not one of the student's 3 encoder layers"
        ):
            make_model(student_layer=layer)
    make_model(student_layer=4, loss_scale=0.0)
