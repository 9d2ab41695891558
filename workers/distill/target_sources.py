"""Where the targets of a head come from, apart from the head that learns them and from the training loop.

Shape suffixes: S student frames, T teacher frames, N codebooks, K = N * teacher frames per student frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mvqkd.models.alignment import FrameAlignment
from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.models.students.base import StudentFrames
from mvqkd.storage.contract import TableContract
from mvqkd.workers.distill.settings import DistillConfig


class TargetSource(Protocol):
    """Targets of one head, one utterance after the other. Called from several threads."""

    @property
    def spec(self) -> TargetSpec:
        """What a student frame is to predict."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the index table that the targets are made of."""
        ...

    def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
        """Targets of one utterance, (num_frames, width of the spec); padding values where there is none.

        Args:
            row: of the index table, with `columns` and `cut_id`.
            num_frames: of the student.

        Raises:
            ValueError: the row and the student's frames do not belong together.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one layer of a student is to predict: from which source, and how much it counts.

    Attributes:
        source: of the targets.
        layer: of the student, from 1.
        scale: factor of the loss summed over frames and codebooks.
    """

    source: TargetSource
    layer: int
    scale: float


class TableCodes:
    """The codes of an index table.

    Args:
        contract: of the table.
        alignment: teacher frames to student frames.
        codebooks: take only the first so many codes of a frame; None takes all.
    """

    columns = ("codes",)

    def __init__(
        self, contract: TableContract, alignment: FrameAlignment, *, codebooks: int | None = None
    ) -> None:
        self._alignment, self._codebooks = alignment, codebooks
        self.spec = TargetSpec(
            kind="codes",
            num_codebooks=(codebooks or contract.num_codebooks) * alignment.frames_per_target,
            codebook_size=contract.codebook_size,
        )

    def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
        """int64 (S, K), -100 where there is none. Raises `AlignmentError` when too many are missing."""
        return self._alignment(torch.tensor(row["codes"])[:, : self._codebooks], num_frames)


def targets_of(settings: DistillConfig, contract: TableContract, frames: StudentFrames) -> dict[str, Target]:
    """What the run file's `distill` section has a student predict, by name; nothing when `loss_scale` is 0."""
    if not settings.loss_scale:
        return {}
    alignment = FrameAlignment(
        teacher_rate_hz=contract.frame_rate_hz,
        student_rate_hz=frames.frame_rate_hz,
        teacher_offset_s=contract.frame_offset_s,
        student_offset_s=frames.frame_offset_s,
        delay_frames=settings.delay_frames,
        max_missing_frames=settings.max_missing_frames,
    )
    codes = TableCodes(contract, alignment, codebooks=settings.codebooks)
    return {"codebook": Target(source=codes, layer=settings.student_layer, scale=settings.loss_scale)}
