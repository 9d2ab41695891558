"""A student and heads on its layers: one module with one forward, so that it can be wrapped for several GPUs.

Shape suffixes: B utterances, T feature frames, F feature bins, S the student's frames, U units.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mvqkd.models.distillation.heads import HeadLoss
from mvqkd.models.distillation.tap import tapped
from mvqkd.models.students.base import Student, StudentLoss


@dataclass(frozen=True, kw_only=True)
class AttachedHead:
    """A head, the student's layer (from 1) whose output it gets, and the factor of its loss summed over all that
    counts. The head is a module that takes (B, S, C) and targets and returns a `HeadLoss`."""

    layer: int
    scale: float
    head: nn.Module


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses of a batch.

    Attributes:
        total: per frame of the student, to be minimized.
        parts: of the student's own loss, in nats, summed over the batch, detached.
        heads: of each head, summed over the `count` that it was for, detached.
        num_frames: frames of the student.
    """

    total: Tensor
    parts: dict[str, Tensor]
    heads: dict[str, HeadLoss]
    num_frames: int


class DistillationModel(nn.Module):
    """A student and, when something is to be distilled into it, heads on its layers.

    Without heads there are no parameters but the student's: one without a gradient breaks distributed training.

    Args:
        student: any student. Build it before the heads, so that a seed gives it the same weights with and without.
        heads: by a name that `forward` finds their targets by.

    Raises:
        ValueError: the student has no such layer, or a factor is not above 0.
    """

    def __init__(self, student: Student, heads: Mapping[str, AttachedHead] | None = None) -> None:
        super().__init__()
        heads = heads or {}
        for name, attached in heads.items():
            if not 1 <= attached.layer <= student.num_layers:
                raise ValueError(
                    f"{name}: student_layer {attached.layer} is not one of the student's {student.num_layers} encoder "
                    "layers; set distill.student_layer to one of them, counted from 1"
                )
            if not 0 < attached.scale < math.inf:
                raise ValueError(
                    f"{name}: a factor of {attached.scale:g} is not above 0; leave the head out to train without it"
                )
        self.student = student
        self.heads = nn.ModuleDict({name: attached.head for name, attached in heads.items()})
        self._attached = {name: (attached.layer, attached.scale) for name, attached in heads.items()}

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        units_BU: Tensor | None,
        unit_lengths_B: Tensor | None,
        targets: Mapping[str, Tensor],
        *,
        own_weight: float = 1.0,
        heads_weight: float = 1.0,
    ) -> Losses:
        """Losses of a padded batch.

        Args:
            features_BTF: float32; lengths_B: int64 frames.
            units_BU: int64; unit_lengths_B: int64. None for speech without transcripts, of which the heads alone learn.
            targets: of every head, (B, S, *) as it takes them; others are not looked at.
            own_weight, heads_weight: factors of the student's own loss and of what the heads add, in the total.

        Raises:
            ValueError: a head has no targets, or targets of another shape.
        """
        missing = sorted(set(self.heads) - set(targets))
        if missing:
            raise ValueError(f"no targets for the heads {missing}; there are {sorted(targets)}")
        with tapped(self.student, sorted({layer for layer, _ in self._attached.values()})) as taps:
            own = self._own(features_BTF, lengths_B, units_BU, unit_lengths_B)
            total, heads = own_weight * own.total, {}
            for name, (layer, scale) in self._attached.items():
                result: HeadLoss = self.heads[name](taps[layer], targets[name])
                total = total + heads_weight * scale * result.loss
                heads[name] = HeadLoss(loss=result.loss.detach(), count=result.count)
        return Losses(
            total=total / max(1, own.num_frames), parts=own.parts, heads=heads, num_frames=own.num_frames
        )

    def _own(
        self, features_BTF: Tensor, lengths_B: Tensor, units_BU: Tensor | None, unit_lengths_B: Tensor | None
    ) -> StudentLoss:
        if units_BU is None:
            num_frames = int(self.student.encode(features_BTF, lengths_B).sum())
            return StudentLoss(total=features_BTF.new_zeros(()), parts={}, num_frames=num_frames)
        assert unit_lengths_B is not None
        return self.student.loss(features_BTF, lengths_B, units_BU, unit_lengths_B)
