"""The workers as Ray actors: each builds its plain worker where it runs and hands the work to it."""

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from mvqkd.models.quantizer import FitConfig
from mvqkd.storage.errors import ContractError
from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.embed import Embedder
from mvqkd.workers.extract import Extractor, ShardReport
from mvqkd.workers.fit import QuantizerFitter, load_quantizer
from mvqkd.workers.plan import Shard
from mvqkd.workers.sample import Sample
from mvqkd.workers.teacher import TeacherConfig, choose_device, open_teacher

NOTE_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class EmbedderSpec:
    """What an actor needs to build its `Embedder`."""

    teacher: TeacherConfig
    batch_seconds: float
    decode_threads: int
    compute_threads: int
    options: dict[str, str]
    root: str | None = None

    def build(self) -> Embedder:
        """Load the teacher in this process."""
        torch.set_num_threads(self.compute_threads)
        teacher = open_teacher(self.teacher, options=self.options)
        loader = AudioLoader(teacher.info.sample_rate_hz, s3=self.options, root=self.root)
        return Embedder(teacher, loader, batch_seconds=self.batch_seconds, decode_threads=self.decode_threads)


class FitActor:
    """Fits the quantizer; `board` is told how far it is."""

    def __init__(
        self,
        spec: EmbedderSpec,
        *,
        location: Location,
        config: FitConfig,
        max_frames: int,
        settings: dict[str, Any],
        board: Any,
    ) -> None:
        self._fitter = QuantizerFitter(
            embedder=spec.build(),
            location=location,
            config=config,
            max_frames=max_frames,
            settings=settings,
            device=choose_device(spec.teacher.device),
        )
        self._board = board

    def run(self, sample: Sample, *, attempt: int) -> dict[str, Any]:
        """Fit to the sample; see `QuantizerFitter.run`."""
        return self._fitter.run(sample, lambda note: self._board.put.remote("fit", note))


class ExtractActor:
    """Extracts shards; `board` is told how far each is."""

    def __init__(
        self,
        spec: EmbedderSpec,
        *,
        quantizer: Location,
        table: IndexTable,
        plan: Location,
        max_unreadable: float,
        max_attempts: int,
        board: Any,
    ) -> None:
        embedder = spec.build()
        loaded, _ = load_quantizer(quantizer)
        fingerprint = embedder.teacher.info.fingerprint
        if fingerprint != table.contract.teacher_fingerprint:
            raise ContractError(
                f"{spec.teacher.path}: the teacher's fingerprint is {fingerprint}, but the quantizer was fitted on "
                f"{table.contract.teacher_fingerprint}: another checkpoint, layer or dtype; set it back or fit again"
            )
        self._extractor = Extractor(
            embedder=embedder,
            quantizer=loaded.to(choose_device(spec.teacher.device)),
            table=table,
            plan=plan,
            max_unreadable=max_unreadable,
        )
        self._board, self._key = board, ray.get_runtime_context().get_actor_id()
        self._next_note = 0.0
        self._max_attempts = max_attempts

    def run(self, shard: Shard, *, attempt: int) -> ShardReport:
        """Extract one shard; see `Extractor.run`."""

        def note(hours: float) -> None:
            if time.monotonic() >= self._next_note:
                self._next_note = time.monotonic() + NOTE_EVERY_S
                self._board.put.remote(self._key, {"position": shard.position, "hours": hours})

        return self._extractor.run(shard, last_attempt=attempt >= self._max_attempts, progress=note)


def remote(worker: type, *, cpus: float, gpus: float, **options: Any) -> Any:
    """`worker` as an actor class that is never restarted by Ray: the dispatcher counts attempts itself."""
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, **options)(worker)
