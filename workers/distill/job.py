"""A training as it is handed to a process: settings that travel, the trainer built of them, and the loop around it."""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mvqkd.models.distillation.heads import build_head
from mvqkd.models.distillation.model import AttachedHead, DistillationModel
from mvqkd.models.students.base import Student
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import Units, load_units
from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.distill.batches import Durations, TableBatches
from mvqkd.workers.distill.examples import ExampleMaker
from mvqkd.workers.distill.meter import Progress
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.student_record import StudentRecord, save_student
from mvqkd.workers.distill.target_sources import Target, targets_of
from mvqkd.workers.distill.trainer import StudentTrainer

STATE = "state.pt"
STATE_VERSION = 2
"""Raised when the content of the state changes, so that a training starts anew where an older one left its state."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a training a process stands: its device, its rank among how many, how the model is wrapped for them."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One student to train. `digest` names the training: the same one resumes, another one starts anew.

    `durations` and `units` (kind and data) are what the driver read from the table, once for all workers; `out`
    is the student's folder, `root` and `options` say where the audio lies, `threads` are torch's in each worker.
    """

    digest: str
    table: IndexTable
    durations: Durations
    units: tuple[str, str]
    student: StudentConfig
    distill: DistillConfig
    root: str | None
    options: Mapping[str, str]
    out: Location
    threads: int

    @property
    def state_name(self) -> str:
        """Folder of the training's state below `checkpoints`."""
        return f"{self.digest}-{STATE_VERSION}"

    def build(self, place: Place) -> StudentTrainer:
        """The trainer of one rank, from the table and the settings alone."""
        units = load_units(*self.units)
        # The student is built first: with the same seed it starts from the same weights with and without codes.
        torch.manual_seed(self.distill.seed)
        student = ConformerTransducer(self.student, len(units), ctc_scale=self.distill.ctc_scale)
        targets = targets_of(self.distill, self.table.contract, student.frames)
        return build_trainer(self, student, units, targets, place)

    def save(self, trainer: StudentTrainer) -> None:
        """Store the trained student."""
        record = StudentRecord(
            student=self.student.to_dict(),
            distill=self.distill.model_dump(),
            units={"kind": self.units[0], "data": self.units[1]},
            contract=asdict(self.table.contract),
            sample_rate_hz=trainer.model.student.frames.sample_rate_hz,
            digest=self.digest,
            steps=trainer.total_steps,
            left_out=trainer.left_out,
        )
        save_student(self.out, trainer.student_state(), record)


def build_trainer(
    job: TrainJob, student: Student, units: Units, targets: Mapping[str, Target], place: Place
) -> StudentTrainer:
    """A trainer of any student on any targets; `job` says from which table and how."""
    settings = job.distill
    heads = {
        name: AttachedHead(
            layer=target.layer,
            scale=target.scale,
            head=build_head(target.source.spec, student.layer_channels(target.layer)),
        )
        for name, target in targets.items()
    }
    sources = {name: target.source for name, target in targets.items()}
    make = ExampleMaker(
        student,
        units,
        sources,
        loader=AudioLoader(student.frames.sample_rate_hz, s3=job.options, root=job.root),
        table_rate_hz=job.table.contract.sample_rate_hz,
        cache_mb=settings.cache_mb,
    )
    batches = TableBatches(
        job.table,
        job.durations,
        make,
        specs={name: source.spec for name, source in sources.items()},
        batch_seconds=settings.batch_seconds,
        seed=settings.seed,
        decode_threads=settings.decode_threads,
        rank=place.rank,
        world_size=place.world_size,
    )
    model = DistillationModel(student, heads).to(place.device)
    return StudentTrainer(model, batches, settings, device=place.device, wrap=place.wrap, rank=place.rank)


def train_here(job: TrainJob, *, device: torch.device, note: Callable[[dict[str, Any]], None]) -> None:
    """Train in this process, from the last checkpoint if there is one, and store the student."""
    torch.set_num_threads(job.threads)
    trainer = job.build(Place(device=device))
    checkpoints = job.out.join("checkpoints", job.state_name)
    try:
        state = torch.load(io.BytesIO(checkpoints.read_bytes(STATE)), map_location=device, weights_only=True)
    except ObjectMissingError:
        pass
    else:
        trainer.load_state(state)

    def report(progress: Progress, keep: Callable[[], dict[str, Any]] | None) -> None:
        note(asdict(progress))
        if keep is not None:
            packed = io.BytesIO()
            torch.save(keep(), packed)
            checkpoints.replace(STATE, packed.getvalue())

    trainer.run(report)
    job.save(trainer)
