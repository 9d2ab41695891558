"""A tiny student, batches of a table for it, and its trainer."""

from collections.abc import Sequence
from typing import Any

import torch

from mvqkd.models.alignment import FrameAlignment
from mvqkd.models.distillation.heads import build_head
from mvqkd.models.distillation.model import AttachedHead, DistillationModel
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import CharUnits
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.distill.data import DataState, TrainingData
from mvqkd.workers.distill.examples import Batch, ExampleMaker
from mvqkd.workers.distill.rows import Source, scan_table
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.target_sources import TableCodes
from mvqkd.workers.distill.trainer import StudentTrainer

ALIGNMENT = FrameAlignment(
    teacher_rate_hz=50.0, student_rate_hz=25.0, teacher_offset_s=0.0125, student_offset_s=0.03
)
LENGTHS = [0.5, 0.8, 0.3, 0.6, 0.7, 0.4, 0.9, 0.35, 0.55, 0.65, 0.45, 0.75]
STUDENT = StudentConfig(
    encoder_dim=16, num_layers=2, num_heads=2, ffn_dim=32, conv_kernel=5, predictor_dim=8, joiner_dim=16
)
UNITS = CharUnits(" acdgot")
SETTINGS = DistillConfig(
    loss_scale=0.1, student_layer=1, epochs=2, batch_seconds=2.0, lr=2e-3, warmup_steps=2, checkpoint_steps=3,
    average_epochs=2, cache_mb=64, seed=1,
)  # fmt: skip


def make_data(
    table: IndexTable,
    settings: DistillConfig = SETTINGS,
    *,
    others: Sequence[IndexTable] = (),
    alignment: FrameAlignment = ALIGNMENT,
    student: StudentConfig = STUDENT,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> TrainingData:
    """Of the tests' table, with `settings.loss_scale` and `codebooks` as the run file has them."""
    sources = {}
    if settings.loss_scale:
        sources["codebook"] = TableCodes(table.contract, alignment, codebooks=settings.codebooks)
    make = ExampleMaker(
        ConformerTransducer(student, len(UNITS)),
        UNITS,
        sources,
        loaders=[AudioLoader(student.sample_rate_hz)] * (1 + len(others)),
        table_rate_hz=table.contract.sample_rate_hz,
        cache_mb=settings.cache_mb,
        **options,
    )
    scan = scan_table(
        table,
        valid_hours=settings.valid_hours,
        transcribed_hours=settings.transcribed_hours,
        pretrain=settings.pretrain,
        seed=settings.seed,
    )
    return TrainingData(
        [Source(table=each, shards=sorted(each.committed())) for each in (table, *others)],
        scan.choice,
        make,
        own_s=scan.seconds["codes" if settings.pretrain else "own"],
        num_rows=sum(scan.rows.values()),
        specs={name: source.spec for name, source in sources.items()},
        settings=settings,
        rank=rank,
        world_size=world_size,
    )


def batches_of(data: TrainingData, state: DataState | None = None) -> list[Batch]:
    """All batches of this rank, one after the other."""
    return [batch for step in data.steps(state or DataState()) for batch in step.batches]


def make_model(settings: DistillConfig, table: IndexTable) -> DistillationModel:
    torch.manual_seed(settings.seed)
    student = ConformerTransducer(STUDENT, len(UNITS), ctc_scale=settings.ctc_scale)
    heads = {}
    if settings.loss_scale:
        spec = TableCodes(table.contract, ALIGNMENT).spec
        head = build_head(spec, student.layer_channels(settings.student_layer))
        heads["codebook"] = AttachedHead(layer=settings.student_layer, scale=settings.loss_scale, head=head)
    return DistillationModel(student, heads)


def make_trainer(
    table: IndexTable, settings: DistillConfig = SETTINGS, *, device: str = "cpu"
) -> StudentTrainer:
    model = make_model(settings, table).to(device)
    return StudentTrainer(model, make_data(table, settings), settings, device=torch.device(device))
