"""A student of one's own in ten lines and a second source of targets train without a change of the trainer."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_fakes import LENGTHS, SETTINGS, STUDENT, UNITS, batches_of
from torch import Tensor, nn

from mvqkd.models.alignment import FrameAlignment
from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.models.students.ctc import CtcStudent
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.job import Place, Speech, TrainJob, build_trainer
from mvqkd.workers.distill.meter import Progress
from mvqkd.workers.distill.rows import scan_table
from mvqkd.workers.distill.target_sources import TableCodes
from mvqkd.workers.distill.targets import Target

MakeTable = Callable[..., IndexTable]


class Recurrent(CtcStudent):
    """A student that nobody here ships: two recurrent layers, one frame for every mel frame."""

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.channels = 24
        self.layers = nn.ModuleList([nn.GRU(80 if n == 0 else 24, 24, batch_first=True) for n in range(2)])
        self.output = nn.Linear(24, num_units)

    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            features_BTF, _ = layer(features_BTF)
        return self.output(features_BTF), lengths_B


class SpeakerVectors:
    """Targets out of nothing but the row: a vector for each speaker, to be predicted in every other frame."""

    spec = TargetSpec(kind="embeddings", dim=4)
    columns = ("speaker",)

    def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
        targets_SD = torch.full((num_frames, 4), torch.nan)
        targets_SD[::2] = torch.eye(4)[0 if row["speaker"] == "ann" else 1]
        return targets_SD


def make_job(table: IndexTable, out: Location, **settings: object) -> TrainJob:
    scan = scan_table(table)
    return TrainJob(
        digest="own",
        speech=Speech(
            table=table, root=None, choice=scan.choice, epoch_s=scan.seconds["own"], num_rows=scan.rows["own"]
        ),
        units=(UNITS.kind, UNITS.data),
        student=STUDENT,
        distill=SETTINGS.model_copy(update={"epochs": 12, "lr": 1e-2, **settings}),
        options={},
        out=out,
        threads=1,
    )


def test_ten_lines_and_a_second_source(make_table: MakeTable, tmp_path: Any) -> None:
    table = make_table(LENGTHS)
    torch.manual_seed(1)
    student = Recurrent(len(UNITS))
    rate_hz = student.frames.frame_rate_hz
    targets = {
        "codebook": Target(
            source=TableCodes(table.contract, FrameAlignment(teacher_rate_hz=50.0, student_rate_hz=rate_hz)),
            layer=1,
            scale=0.1,
        ),
        "speaker": Target(source=SpeakerVectors(), layer=2, scale=0.5),
    }
    job = make_job(table, open_location(str(tmp_path / "student")))
    trainer = build_trainer(job, student, UNITS, targets, Place(device=torch.device("cpu")))
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    seen: list[Progress] = []
    trainer.run(lambda progress, state: seen.append(progress))
    assert trainer.done == 1.0 and trainer.step > 8
    first, last = seen[0].head_losses, seen[-1].head_losses
    assert set(first) == {"codebook", "speaker"}
    assert last["speaker"] < 0.5 * first["speaker"]
    assert seen[-1].codebook_loss == last["codebook"] < first["codebook"]
    assert seen[-1].transducer_loss < seen[0].transducer_loss  # its own loss, which is CTC's
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, start[name]), f"{name} has not learned"


def test_a_source_whose_targets_do_not_fit_names_the_utterance(make_table: MakeTable, tmp_path: Any) -> None:
    class Bad(SpeakerVectors):
        def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
            raise ValueError(f"no vector for {row['speaker']}")

    table = make_table(LENGTHS)
    job = make_job(table, open_location(str(tmp_path / "student")))
    targets = {"speaker": Target(source=Bad(), layer=1, scale=0.5)}
    place = Place(device=torch.device("cpu"))
    trainer = build_trainer(job, Recurrent(len(UNITS)), UNITS, targets, place)
    with pytest.raises(ValueError, match=r"u\d+: no vector for (ann|bob)"):
        trainer.run(lambda progress, state: None)


def test_a_student_at_another_rate_than_the_table(make_table: MakeTable, tmp_path: Any) -> None:
    """The teacher took 16 kHz, the student takes 8: each row is the same audio to it, and aligned by time."""
    table = make_table(LENGTHS)
    job = make_job(table, open_location(str(tmp_path / "student")), epochs=1)
    job = replace(job, student=replace(STUDENT, sample_rate_hz=8000))
    trainer = job.build(Place(device=torch.device("cpu")))
    student = trainer.model.student
    assert (student.frames.sample_rate_hz, student.frames.frame_rate_hz) == (8000, 25.0)
    batch = batches_of(trainer._data)[0]
    rows = {row["cut_id"]: row for row in table.iter_rows()}
    for example in batch.examples:
        row = rows[example.cut_id]
        assert abs(len(example.features_TF) - row["duration"] * 100) <= 1
        codes_TN = torch.tensor(row["codes"]).long()
        # The student's frame 4 is at 0.03 + 4 / 25 s, between the teacher's frames 8 and 9 at 0.0125 + n / 50 s.
        assert torch.equal(example.targets["codebook"][4], codes_TN[8:10].flatten())
    trainer.run(lambda progress, state: None)
    assert not trainer.left_out
