"""What the run file has a student predict, put together: sources of targets, the layers and heads that they are for."""

from collections.abc import Callable
from dataclasses import dataclass

from mvqkd.models.distillation.heads import build_head
from mvqkd.models.distillation.model import AttachedHead
from mvqkd.models.students.base import Student, StudentFrames
from mvqkd.storage.contract import TableContract
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.live_teacher import LiveTeacher
from mvqkd.workers.distill.settings import MAIN, Distance, DistillConfig, TargetConfig
from mvqkd.workers.distill.target_sources import (
    JoinedTable,
    LiveSource,
    TargetSource,
    alignment_of,
    table_source,
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one layer of a student is to predict: from which source, and how much it counts.

    Attributes:
        source: of the targets; a `LiveSource` makes them in the training step.
        layer: of the student, from 1.
        scale: factor of the loss summed over frames and codebooks, or channels.
        per_codebook: the scale is divided by the number of codebooks of the teacher's frames.
        joint, label_smoothing: of a head that predicts codes.
        distance: of a head that predicts embeddings.
    """

    source: TargetSource | LiveSource
    layer: int
    scale: float
    per_codebook: bool = False
    joint: bool = False
    label_smoothing: float = 0.0
    distance: Distance = "l2"

    def attached(self, student: Student) -> AttachedHead:
        """A new head for it."""
        spec = self.source.spec
        head = build_head(
            spec,
            student.layer_channels(self.layer),
            joint=self.joint,
            label_smoothing=self.label_smoothing,
            distance=self.distance,
        )
        share = spec.num_codebooks if self.per_codebook and spec.num_codebooks else 1
        return AttachedHead(layer=self.layer, scale=self.scale / share, head=head)


def targets_of(
    settings: DistillConfig,
    contract: TableContract,
    frames: StudentFrames,
    *,
    open_table: Callable[[str], IndexTable] | None = None,
    live_teacher: Callable[[TargetConfig], LiveTeacher] | None = None,
) -> dict[str, Target]:
    """What the run file's `distill` section has a student predict, by name; nothing when it names nothing.

    Args:
        contract: of the run's own table.
        frames: of the student.
        open_table: the table at a path, for `distill.targets`.
        live_teacher: for a target without a table.

    Raises:
        ValueError: a target cannot be made.
    """
    targets = {}
    if settings.loss_scale:
        alignment = alignment_of(
            contract,
            frames,
            delay_frames=settings.delay_frames,
            max_missing_frames=settings.max_missing_frames,
        )
        targets[MAIN] = Target(
            source=table_source(contract, alignment, codebooks=settings.codebooks, where="the run's table"),
            layer=settings.student_layer,
            scale=settings.loss_scale,
            per_codebook=settings.per_codebook,
            joint=settings.joint,
            label_smoothing=settings.label_smoothing,
            distance=settings.distance,
        )
    for name, wanted in settings.targets.items():
        source: TargetSource | LiveSource
        if wanted.table is None:
            assert live_teacher is not None
            source = live_teacher(wanted)
        else:
            assert open_table is not None
            source = _joined(open_table(wanted.table), wanted, frames)
        targets[name] = Target(
            source=source,
            layer=wanted.student_layer,
            scale=wanted.scale,
            per_codebook=wanted.per_codebook,
            joint=wanted.joint,
            label_smoothing=wanted.label_smoothing,
            distance=wanted.distance,
        )
    return targets


def _joined(table: IndexTable, wanted: TargetConfig, frames: StudentFrames) -> JoinedTable:
    if wanted.codebooks is not None and wanted.codebooks > table.contract.num_codebooks:
        raise ValueError(
            f"distill.targets: {table.location.url} has {table.contract.num_codebooks} codes a frame, not the "
            f"{wanted.codebooks} of codebooks; lower it, or leave it out to take all"
        )
    alignment = alignment_of(
        table.contract,
        frames,
        delay_frames=wanted.delay_frames,
        max_missing_frames=wanted.max_missing_frames,
    )
    return JoinedTable(
        table,
        table_source(table.contract, alignment, codebooks=wanted.codebooks, where=table.location.url),
    )
