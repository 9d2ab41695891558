"""The bare teacher, and our extraction: by one actor's worker in this process, and by the whole command."""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.extraction.corpus import Work
from mvqkd.models.teachers import Teacher
from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.decode_ahead import length_sorted_batches
from mvqkd.workers.extract import SHARDS_AT_ONCE, Extractor
from mvqkd.workers.plan import Shard, read_shard_cuts


def bare_and_actor(work: Work, folder: Path, *, threads: int, pairs: int) -> dict[str, Any]:
    """The teacher alone and one actor's worker, in turn, on the same batches.

    The worker decodes, codes, packs and writes what the teacher alone is only given. The first pair is a warm-up.
    """
    teacher = work.teacher()
    embedder = work.embedder(teacher, threads=threads)
    bare = _Bare(work, teacher)
    seconds: list[tuple[float, float]] = []
    meters: dict[str, float] = {}
    for number in range(pairs + 1):
        alone_s = bare.run()
        table = IndexTable.create(open_location(str(folder / f"actor-{number}")), work.contract)
        extractor = Extractor(
            embedder=embedder, tables=[(table, work.quantizer())], plan=work.run.plan("train")
        )
        actor_s = run_worker(extractor, work.shards)
        shutil.rmtree(folder / f"actor-{number}")
        if number:
            seconds.append((alone_s, actor_s))
            meters = extractor.meters.read()
    ratios = sorted(alone / actor for alone, actor in seconds)
    busy = meters["running_s"]
    return {
        "bare_teacher_hours_per_hour": work.hours * 3600 / median(alone for alone, _ in seconds),
        "actor_hours_per_hour": work.hours * 3600 / median(actor for _, actor in seconds),
        "actor_to_bare_teacher": median(ratios),
        "actor_to_bare_teacher_all": ratios,
        "share_teacher": meters["teacher_busy_s"] / busy,
        "share_quantizer": meters["quantizer_busy_s"] / busy,
        "share_waiting_for_audio": meters["waited_s"] / busy,
        "padding": 1 - meters["audio_s"] / meters["computed_s"],
        "rrl": meters["rrl_frames"] / meters["frames"],
    }


def run_worker(extractor: Extractor, shards: Sequence[Shard]) -> float:
    """Seconds for some shards, given to the worker as its actor would."""
    began = time.perf_counter()
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        list(pool.map(extractor.run, shards))
    return time.perf_counter() - began


class _Bare:
    """The teacher on the batches of an extraction, which lie in memory."""

    def __init__(self, work: Work, teacher: Teacher) -> None:
        self._teacher = teacher
        loader, seconds = work.loader(), work.run.config.extract.batch_seconds
        self._batches = []
        for shard in work.shards:
            cuts = list(read_shard_cuts(work.run.plan("train"), shard))
            for batch in length_sorted_batches(cuts, [cut.duration for cut in cuts], batch_seconds=seconds):
                self._batches.append([loader(cut) for cut in batch])

    def run(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        for batch in self._batches:
            self._teacher.encode(batch)
        return time.perf_counter() - began


def command(work: Work, arguments: Sequence[str], run_file: str, folder: Path) -> dict[str, float]:
    """`mvqkd extract` on the Ray that runs already, its actors' start included."""
    root = folder / "command"
    run = Run(load_config(run_file, [*arguments, f"storage.root={root}", "cluster.address=auto"]))
    for name in work.run.quantizer.list():
        run.quantizer.replace(name, work.run.quantizer.read_bytes(name))
    shutil.copytree(work.run.plan("train").url, run.plan("train").url)
    began = time.perf_counter()
    summary = extract_stage(run)
    seconds = time.perf_counter() - began
    hours = summary["speed"]["extracted_hours"]
    return {"hours_per_hour": hours * 3600 / seconds, "seconds": seconds, "hours": hours}
