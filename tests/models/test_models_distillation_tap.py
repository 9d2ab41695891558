"""Tapping layers by hooks: the output of one pass, and nothing that stays."""

import gc
import weakref

import pytest
import torch
from students_fakes import TinyStudent, small_conformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvqkd.models.distillation.tap import tapped


def test_tapped_layers_are_batch_first_and_differ() -> None:
    student = small_conformer().eval()
    features_BTF, lengths_B = torch.randn(2, 40, 80), torch.tensor([40, 30])
    with tapped(student, [1, 2]) as taps:
        encoded_BSD, _ = student.encoder(features_BTF, lengths_B)
        assert torch.equal(taps[2], encoded_BSD) and not torch.equal(taps[1], encoded_BSD)
        assert taps[1].shape == (2, student.num_frames(40), student.layer_channels(1))


def test_nothing_is_kept_alive() -> None:
    student = TinyStudent(6)
    with tapped(student, [1]) as taps:
        student.logits(torch.randn(1, 9, 80), torch.tensor([9]))
        output = weakref.ref(taps[1])
        gc.collect()
        assert output() is not None
    gc.collect()
    assert output() is None
    assert not any(module._forward_hooks for module in student.modules())
    with pytest.raises(RuntimeError, match="ran 0 times"):
        taps[1]


def test_a_pass_that_fails_leaves_no_hook() -> None:
    student = small_conformer()
    with pytest.raises(RuntimeError), tapped(student, [1]):
        student.encoder(torch.randn(1, 40, 60), torch.tensor([40]))
    assert not any(module._forward_hooks for module in student.modules())


class Twice(TinyStudent):
    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(self.layers[0](self.layers[0](features_BTF))), lengths_B


class Checkpointed(TinyStudent):
    reentrant = True

    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BTC = features_BTF.requires_grad_()
        for layer in self.layers:
            x_BTC = checkpoint(layer, x_BTC, use_reentrant=self.reentrant)
        return self.output(x_BTC), lengths_B


class Frozen(TinyStudent):
    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x_BTC = self.layers[0](features_BTF)
        return self.output(x_BTC), lengths_B


def test_a_layer_that_runs_twice_is_refused() -> None:
    student = Twice(6)
    with tapped(student, [1]) as taps:
        student.logits(torch.randn(1, 9, 80), torch.tensor([9]))
        with pytest.raises(RuntimeError, match="layer 1 of Twice ran 2 times in one forward pass"):
            taps[1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_twice_for_memory(reentrant: bool) -> None:
    student = Checkpointed(6)
    student.reentrant = reentrant
    with tapped(student, [1]) as taps:
        student.logits(torch.ones(1, 9, 80), torch.tensor([9]))
        taps[1].sum().backward()
    assert torch.equal(student.layer(1).weight.grad, torch.full((80, 80), 9.0))


def test_a_layer_without_a_gradient_is_refused() -> None:
    student = Frozen(6)
    with tapped(student, [1]) as taps:
        student.logits(torch.randn(1, 9, 80), torch.tensor([9]))
        with pytest.raises(RuntimeError, match="layer 1 of Frozen has no gradient"):
            taps[1]
        with torch.no_grad():
            assert taps[1].shape == (1, 9, 80)


def test_a_tuple_is_taken_by_its_first() -> None:
    class Tuples(TinyStudent):
        def __init__(self) -> None:
            super().__init__(6)
            self.layers = nn.ModuleList([WithWeights(80, 80)])

    class WithWeights(nn.Linear):
        def forward(self, x_BTC: Tensor) -> tuple[Tensor, None]:
            return super().forward(x_BTC), None

    student = Tuples()
    with tapped(student, [1]) as taps:
        student.layers[0](torch.ones(1, 3, 80))
        assert taps[1].shape == (1, 3, 80)
