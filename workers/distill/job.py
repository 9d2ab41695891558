"""A training as it is handed to a process: settings that travel, the trainer built of them, and the loop around it."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mvqkd.models.distillation.model import DistillationModel
from mvqkd.models.students.base import Student
from mvqkd.models.students.build import build_student
from mvqkd.models.students.kinds import AnyStudentConfig
from mvqkd.models.students.units import Units, load_units
from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.distill.data import TrainingData
from mvqkd.workers.distill.examples import ExampleMaker
from mvqkd.workers.distill.held_out import HeldOut
from mvqkd.workers.distill.initial import freeze_unreached, start_from, untrained
from mvqkd.workers.distill.live_teacher import LiveTeacher, open_live_teacher
from mvqkd.workers.distill.meter import Progress
from mvqkd.workers.distill.noise import NoiseMixer, find_noises
from mvqkd.workers.distill.rows import Choice, RowKey, Source
from mvqkd.workers.distill.settings import DistillConfig, TargetConfig
from mvqkd.workers.distill.student_record import StudentRecord, save_student
from mvqkd.workers.distill.targets import Target, targets_of
from mvqkd.workers.distill.trainer import StudentTrainer
from mvqkd.workers.teacher import TeacherConfig

STATE = "state.pt"
STATE_VERSION = 3
"""Raised when the content of the state changes, so that a training starts anew where an older one left its state."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a training a process stands: its device, its rank among how many, how the model is wrapped for them."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What is read for a training, as the driver found it, once for all workers.

    Attributes:
        table: the run's own; `root` is where its audio lies.
        others: tables that are read without their transcripts, each with the root of its audio.
        choice: of the use of each row.
        epoch_s: seconds of audio of one epoch.
        num_rows: that are trained on.
        valid: rows of the held-out part.
    """

    table: IndexTable
    root: str | None
    others: Sequence[tuple[IndexTable, str | None]] = ()
    choice: Choice
    epoch_s: float
    num_rows: int
    valid: Sequence[RowKey] = ()

    def sources(self) -> list[Source]:
        """The tables and their shards."""
        tables = [self.table, *(table for table, _ in self.others)]
        return [Source(table=table, shards=sorted(table.committed())) for table in tables]


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One student to train. `digest` names the training: the same one resumes, another one starts anew.

    `units` are kind and data; `out` is the student's folder, `options` say where audio lies, `threads` are torch's in
    each worker. `teacher` and `quantizer` are for targets that are made in the training step.
    """

    digest: str
    speech: Speech
    units: tuple[str, str]
    student: AnyStudentConfig
    distill: DistillConfig
    options: Mapping[str, str]
    out: Location
    threads: int
    teacher: TeacherConfig | None = None
    quantizer: Location | None = None

    @property
    def state_name(self) -> str:
        """Folder of the training's state below `checkpoints`."""
        return f"{self.digest}-{STATE_VERSION}"

    def build(self, place: Place) -> StudentTrainer:
        """The trainer of one rank, from the tables and the settings alone."""
        units = load_units(*self.units)
        # The student is built first: with the same seed it starts from the same weights with and without codes.
        torch.manual_seed(self.distill.seed)
        student = build_student(self.student, len(units), ctc_scale=self.distill.ctc_scale)
        if self.distill.init is not None:
            start_from(student, open_location(self.distill.init, options=self.options))

        def live_teacher(wanted: TargetConfig) -> LiveTeacher:
            assert self.teacher is not None
            return open_live_teacher(
                self.teacher,
                wanted,
                student.frames,
                self.quantizer,
                options=self.options,
                device=place.device,
            )

        targets = targets_of(
            self.distill,
            self.speech.table.contract,
            student.frames,
            open_table=lambda path: IndexTable.open(open_location(path, options=self.options)),
            live_teacher=live_teacher,
        )
        return build_trainer(self, student, units, targets, place)

    def save(self, trainer: StudentTrainer) -> None:
        """Store the trained student."""
        record = StudentRecord(
            student=self.student.to_dict(),
            distill=self.distill.model_dump(),
            units={"kind": self.units[0], "data": self.units[1]},
            contract=asdict(self.speech.table.contract),
            sample_rate_hz=trainer.model.student.frames.sample_rate_hz,
            digest=self.digest,
            steps=trainer.step,
            left_out=trainer.left_out,
            valid_wer=trainer.keeper.best_wer,
            untrained=untrained(trainer.model.student),
        )
        save_student(self.out, trainer.student_state(), record)


def build_trainer(
    job: TrainJob, student: Student, units: Units, targets: Mapping[str, Target], place: Place
) -> StudentTrainer:
    """A trainer of any student on any targets; `job` says from which tables and how."""
    settings, speech, sources = job.distill, job.speech, job.speech.sources()
    heads = {name: target.attached(student) for name, target in targets.items()}
    stored, live = {}, {}
    for name, target in targets.items():
        if isinstance(target.source, LiveTeacher):
            live[name] = target.source
        else:
            stored[name] = target.source
    roots = [speech.root, *(root for _, root in speech.others)]
    rate_hz = student.frames.sample_rate_hz
    loaders = [AudioLoader(rate_hz, s3=job.options, root=root) for root in roots]
    table_rate_hz = speech.table.contract.sample_rate_hz

    def maker(**options: Any) -> ExampleMaker:
        return ExampleMaker(student, units, loaders=loaders, table_rate_hz=table_rate_hz, **options)

    data = TrainingData(
        sources,
        speech.choice,
        maker(
            sources=stored,
            cache_mb=settings.cache_mb,
            noise=_noise(settings, rate_hz),
            keep_waveform=bool(live),
        ),
        own_s=speech.epoch_s,
        num_rows=speech.num_rows,
        specs={name: source.spec for name, source in stored.items()},
        settings=settings,
        rank=place.rank,
        world_size=place.world_size,
    )
    held_out = HeldOut(
        speech.valid[place.rank :: place.world_size],
        sources,
        maker(sources={}),
        units,
        batch_seconds=settings.batch_seconds,
        threads=settings.decode_threads,
    )
    model = DistillationModel(student, heads)
    if settings.pretrain:
        freeze_unreached(model, {name: target.source.spec for name, target in targets.items()})
    return StudentTrainer(
        model.to(place.device),
        data,
        settings,
        device=place.device,
        live=live,
        held_out=held_out if speech.valid else None,
        wrap=place.wrap,
    )


def _noise(settings: DistillConfig, sample_rate_hz: int) -> NoiseMixer | None:
    if settings.noise is None:
        return None
    low, high = settings.noise_snr_db
    return NoiseMixer(
        find_noises(settings.noise),
        AudioLoader(sample_rate_hz),
        share=settings.noise_share,
        snr_db=(low, high),
        seed=settings.seed,
    )


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
