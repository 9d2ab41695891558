"""The student's training as a Ray Train job: one `StudentTrainer` on every worker, checkpoints to the run's storage."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from mvqkd.models.alignment import FrameAlignment
from mvqkd.models.distillation.heads import CodesHead
from mvqkd.models.distillation.model import AttachedHead, DistillationModel
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import Units, load_units
from mvqkd.storage.artifacts import save_artifact
from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.distill.batches import Durations, TableBatches
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.trainer import Progress, StudentTrainer

STUDENT = "student"
STATE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One student to train. `digest` names the training: the same one resumes, another one starts anew.

    `durations` and `units` (kind and data) are what the driver read from the table, once for all workers; `out`
    is the student's folder, `board` the driver's `ProgressBoard` actor.
    """

    digest: str
    table: IndexTable
    durations: Durations
    units: tuple[str, str]
    student: StudentConfig
    distill: DistillConfig
    options: dict[str, str]
    out: Location
    threads: int
    board: Any

    def run(self, *, use_gpu: bool) -> None:
        """Train to the end with Ray Train, from the last checkpoint of this digest if there is one.

        Raises:
            ray.train.TrainingFailedError: the training failed `distill.max_failures` times.
        """
        checkpoints = self.out.join("checkpoints")
        if checkpoints.is_local:
            filesystem = pyarrow.fs.LocalFileSystem()
            Path(checkpoints.base_path).mkdir(parents=True, exist_ok=True)
        else:
            filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(checkpoints.filesystem))
        TorchTrainer(
            train_loop,
            train_loop_config={"job": self},
            torch_config=TorchConfig(backend=None if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.distill.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": self.threads} | ({"GPU": self._gpus_each()} if use_gpu else {}),
            ),
            run_config=RunConfig(
                name=self.digest,
                storage_path=checkpoints.base_path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=self.distill.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        ).fit()

    def _gpus_each(self) -> float:
        return 1.0 if self.distill.gpus_per_worker == "auto" else self.distill.gpus_per_worker


def train_loop(config: dict[str, Any]) -> None:
    """What every worker of the Ray Train job runs."""
    job: TrainJob = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    # With fake GPUs, Ray's own answer would be a CUDA device that is not there.
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(job.threads)
    trainer, units = build_trainer(
        job,
        device=device,
        rank=rank,
        world_size=world_size,
        wrap=ray.train.torch.prepare_model if world_size > 1 else lambda module: module,
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.load_state(torch.load(Path(folder) / STATE, map_location=device, weights_only=True))

    def report(progress: Progress, state: Callable[[], dict[str, Any]] | None) -> None:
        if rank == 0:
            job.board.put.remote("train", asdict(progress))
        if state is None:
            return
        # Every rank reports, rank 0 alone brings a checkpoint.
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:
                torch.save(state(), Path(folder) / STATE)
                saved = Checkpoint.from_directory(folder)
            ray.train.report(
                {"step": progress.step}, checkpoint=saved, checkpoint_dir_name=f"step-{progress.step:08d}"
            )

    trainer.run(report)
    if rank == 0:
        arrays = {name: tensor.numpy() for name, tensor in trainer.student_state().items()}
        metadata = {
            "student": job.student.to_dict(),
            "distill": job.distill.model_dump(),
            "units": {"kind": units.kind, "data": units.data},
            "contract": asdict(job.table.contract),
            "sample_rate_hz": job.table.contract.sample_rate_hz,
            "digest": job.digest,
            "steps": trainer.total_steps,
            "left_out": trainer.left_out,
        }
        save_artifact(job.out, STUDENT, arrays, metadata)


def build_trainer(
    job: TrainJob,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module,
) -> tuple[StudentTrainer, Units]:
    """The trainer of one rank and the student's units, from the table and the job's settings alone."""
    contract, settings = job.table.contract, job.distill
    units = load_units(*job.units)
    alignment = FrameAlignment(
        teacher_rate_hz=contract.frame_rate_hz,
        student_rate_hz=job.student.frame_rate_hz,
        teacher_offset_s=contract.frame_offset_s,
        student_offset_s=job.student.frame_offset_s,
        delay_frames=settings.delay_frames,
        max_missing_frames=settings.max_missing_frames,
    )
    # The student is built first: with the same seed it starts from the same weights with and without codes.
    torch.manual_seed(settings.seed)
    student = ConformerTransducer(job.student, len(units), ctc_scale=settings.ctc_scale)
    heads = {}
    if settings.loss_scale:
        codes = (settings.codebooks or contract.num_codebooks) * alignment.frames_per_target
        head = CodesHead(job.student.encoder_dim, codes, contract.codebook_size)
        heads["codes"] = AttachedHead(layer=settings.student_layer, scale=settings.loss_scale, head=head)
    model = DistillationModel(student, heads).to(device)
    batches = TableBatches(
        job.table,
        job.durations,
        loader=AudioLoader(contract.sample_rate_hz, s3=job.options),
        units=units,
        alignment=alignment,
        batch_seconds=settings.batch_seconds,
        seed=settings.seed,
        codebooks=settings.codebooks,
        cache_mb=settings.cache_mb,
        decode_threads=settings.decode_threads,
        rank=rank,
        world_size=world_size,
    )
    return StudentTrainer(model, batches, settings, device=device, wrap=wrap, rank=rank), units
