"""What is extracted: the shards of a planned run, and its teacher and quantizer as they are loaded in this process."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lhotse import MonoCut

from mvqkd.models.quantizer import Quantizer
from mvqkd.models.teachers import Teacher
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.contract import TableContract
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.embed import Embedder
from mvqkd.workers.plan import Shard, read_shard_cuts
from mvqkd.workers.quantizer_record import load_quantizer
from mvqkd.workers.teacher import choose_device, open_teacher


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of work that every system does.

    Attributes:
        run: its plan and quantizer are there.
        shards: of the plan, as many as `--hours` asks for.
        cuts: of the shards, one after the other.
    """

    run: Run
    shards: Sequence[Shard]
    cuts: Sequence[MonoCut]

    @property
    def hours(self) -> float:
        """Of audio."""
        return sum(cut.duration for cut in self.cuts) / 3600

    @property
    def contract(self) -> TableContract:
        """Of the table, with the search that the run file asks for."""
        _, record = load_quantizer(self.run.quantizer)
        return record.contract(search=self.run.config.extract.search)

    def teacher(self) -> Teacher:
        """The run's teacher."""
        return open_teacher(self.run.config.teacher, options=self.run.config.storage.options)

    def quantizer(self) -> Quantizer:
        """The run's quantizer, on the teacher's device."""
        quantizer, _ = load_quantizer(self.run.quantizer)
        return quantizer.to(choose_device(self.run.config.teacher.device))

    def loader(self) -> AudioLoader:
        """Audio as the teacher takes it."""
        return AudioLoader(16_000, s3=self.run.config.storage.options, root=self.run.corpus_root)

    def embedder(self, teacher: Teacher, *, threads: int) -> Embedder:
        """The teacher, fed as an extraction worker feeds it."""
        config = self.run.config.extract
        torch.set_num_threads(threads)
        return Embedder(
            teacher,
            self.loader(),
            batch_seconds=config.batch_seconds,
            decode_threads=config.decode_threads,
        )


def prepare(run: Run, *, hours: float | None) -> Work:
    """Plan and fit where that is not done yet, and choose shards of about so many hours; all of them by default."""
    plan = need_plan(run, "train")
    fit_stage(run)
    shards, total = [], 0.0
    for shard in plan.shards:
        if hours is not None and shards and total >= hours:
            break
        shards.append(shard)
        total += shard.hours
    cuts = [cut for shard in shards for cut in read_shard_cuts(run.plan("train"), shard)]
    return Work(run=run, shards=shards, cuts=cuts)
