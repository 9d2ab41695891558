"""The student's training as a Ray Train job: one `StudentTrainer` on every worker, checkpoints to the run's storage."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from mvqkd.pipeline.cluster.connect import read_board, start_board
from mvqkd.pipeline.cluster.pool import Note
from mvqkd.pipeline.errors import PoolError
from mvqkd.workers.distill.job import STATE, Place, TrainJob
from mvqkd.workers.distill.meter import Progress

LOOK_EVERY_S = 1.0


def train_on_cluster(job: TrainJob, *, use_gpu: bool, note: Callable[[Note], None]) -> None:
    """Train to the end with Ray Train, from the last checkpoint of this digest if there is one.

    Raises:
        PoolError: the training failed more often than `distill.max_failures` allows.
    """
    checkpoints = job.out.join("checkpoints")
    if checkpoints.is_local:
        Path(checkpoints.base_path).mkdir(parents=True, exist_ok=True)
    gpus = 1.0 if job.distill.gpus_per_worker == "auto" else job.distill.gpus_per_worker
    board = start_board()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend=None if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.distill.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": job.threads} | ({"GPU": gpus} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=job.state_name,
            storage_path=checkpoints.base_path,
            storage_filesystem=checkpoints.arrow_filesystem(),
            failure_config=FailureConfig(max_failures=job.distill.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with _watched(board, note):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise PoolError(f"the training failed: {_root_cause(error)}") from error


@contextmanager
def _watched(board: Any, note: Callable[[Note], None]) -> Iterator[None]:
    """Hand on what the workers say while the job, which blocks, runs."""
    stop = threading.Event()

    def look() -> None:
        for now in read_board(board).values():
            note(now)

    def watch() -> None:
        while not stop.wait(LOOK_EVERY_S):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    look()


def train_loop(config: dict[str, Any]) -> None:
    """What every worker of the Ray Train job runs."""
    job: TrainJob = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    # With fake GPUs, Ray's own answer would be a CUDA device that is not there.
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(job.threads)
    wrap = ray.train.torch.prepare_model if world_size > 1 else lambda module: module
    trainer = job.build(Place(device=device, rank=rank, world_size=world_size, wrap=wrap))
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.load_state(torch.load(Path(folder) / STATE, map_location=device, weights_only=True))

    def report(progress: Progress, state: Callable[[], dict[str, Any]] | None) -> None:
        if rank == 0:
            config["board"].put.remote("train", asdict(progress))
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
        job.save(trainer)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
