"""The mean of weights: torch's arithmetic for floating-point tensors, the last value for counts."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mvqkd.workers.distill.average import WeightAverage


def make_model(channels: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, channels), nn.BatchNorm1d(channels), nn.Linear(channels, 3))


def disturb(model: nn.Module, batches: int) -> None:
    """Other weights, and `batches` more seen by the batch norm."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    for _ in range(batches):
        model(torch.randn(8, 4))


def test_arithmetic_is_torchs_to_the_bit() -> None:
    model = make_model()
    theirs, ours = AveragedModel(copy.deepcopy(model), use_buffers=True), WeightAverage(model)
    for batches in (1, 5, 2, 9):
        disturb(model, batches)
        theirs.update_parameters(model)
        ours.update(model)
        for name, tensor in theirs.module.state_dict().items():
            if tensor.is_floating_point():
                assert torch.equal(ours.mean()[name], tensor), name
        # Not a mean, which would be cut off to an integer, and which CUDA refuses to form.
        assert torch.equal(ours.mean()["1.num_batches_tracked"], model[1].num_batches_tracked)


def test_average_is_of_its_own() -> None:
    model = make_model()
    average = WeightAverage(model)
    before = {name: tensor.clone() for name, tensor in average.mean().items()}
    disturb(model, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.mean().items())
    average.update(model)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    disturb(model, 1)
    assert all(torch.equal(tensor, first[name]) for name, tensor in average.mean().items())


def test_goes_on_from_its_state() -> None:
    model = make_model()
    whole = WeightAverage(model)
    for _ in range(2):
        disturb(model, 1)
        whole.update(model)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = WeightAverage(make_model())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    disturb(model, 1)
    for average in (whole, resumed):
        average.update(model)
    assert all(torch.equal(tensor, resumed.mean()[name]) for name, tensor in whole.mean().items())


def test_state_that_torchs_class_left_can_be_gone_on_from() -> None:
    """Checkpoints of trainings that were started before."""
    model = make_model()
    theirs, ours = AveragedModel(copy.deepcopy(model), use_buffers=True), WeightAverage(model)
    disturb(model, 1)
    theirs.update_parameters(model)
    ours.load_state_dict(theirs.state_dict())
    disturb(model, 1)
    theirs.update_parameters(model)
    ours.update(model)
    assert torch.equal(ours.mean()["0.weight"], theirs.module[0].weight)


def test_state_of_another_model() -> None:
    average = WeightAverage(make_model())
    with pytest.raises(ValueError, match=r"of another model: they differ in .*train anew"):
        average.load_state_dict({"n_averaged": torch.tensor(1), "module.weight": torch.zeros(2)})
