"""The workers as Ray actors: each builds its plain worker where it runs and hands the work to it."""

from dataclasses import dataclass
from typing import Any

import ray
import torch

from models.quantizer import FitConfig
from storage.errors import ContractError
from storage.filesystem import Location
from storage.table import IndexTable
from workers.audio import AudioLoader
from workers.embed import Embedder
from workers.extract import Extractor, ShardReport
from workers.fit import QuantizerFitter, load_quantizer
from workers.sample import Sample
from workers.shards import Shard
from workers.teacher import TeacherConfig, choose_device, open_teacher


@dataclass(frozen=True, kw_only=True)
class EmbedderSpec:
    """What an actor needs to build its `Embedder`."""

    teacher: TeacherConfig
    batch_seconds: float
    decode_threads: int
    compute_threads: int
    options: dict[str, str]

    def build(self) -> Embedder:
        """Load the teacher in this process."""
        torch.set_num_threads(self.compute_threads)
        teacher = open_teacher(self.teacher, options=self.options)
        loader = AudioLoader(teacher.info.sample_rate_hz, s3=self.options)
        return Embedder(teacher, loader, batch_seconds=self.batch_seconds, decode_threads=self.decode_threads)


class FitActor:
    """Fits the quantizer; `board` is told how far it is."""

    def __init__(
        self, spec: EmbedderSpec, *, location: Location, config: FitConfig, max_frames: int, board: Any
    ) -> None:
        self._fitter = QuantizerFitter(
            embedder=spec.build(),
            location=location,
            config=config,
            max_frames=max_frames,
            device=choose_device(spec.teacher.device),
        )
        self._board = board

    def run(self, sample: Sample, *, attempt: int) -> dict[str, Any]:
        """Fit to the sample; see `QuantizerFitter.run`."""
        return self._fitter.run(sample, lambda note: self._board.put.remote("fit", note))


class ExtractActor:
    """Extracts shards."""

    def __init__(self, spec: EmbedderSpec, *, quantizer: Location, table: IndexTable, plan: Location) -> None:
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
        )

    def run(self, shard: Shard, *, attempt: int) -> ShardReport:
        """Extract one shard; see `Extractor.run`."""
        return self._extractor.run(shard)


def remote(worker: type, *, cpus: float, gpus: float, **options: Any) -> Any:
    """`worker` as an actor class that is never restarted by Ray: the dispatcher counts attempts itself."""
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, **options)(worker)
