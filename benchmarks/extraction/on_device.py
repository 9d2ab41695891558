"""One actor's worker beside the bare teacher on a device, with a well-known teacher's shape and random weights.

    python -m benchmarks.extraction.on_device --audio FOLDER [--shape hubert-xlarge] [--dtype bfloat16] [--device cuda]

FOLDER holds FLAC files of real speech at 16 kHz; they are taken again and again, up to `--hours`. Needs no run, no Ray
and no weights. Random weights cost as much as others; the quantizer's are random too. The last line is a dictionary.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from lhotse import MonoCut
from torch import Tensor

from benchmarks.extraction.engine import RATE, write_speech
from benchmarks.extraction.ours import run_worker
from benchmarks.teacher.shapes import SHAPES, random_teacher
from mvqkd.models.quantizer import Quantizer
from mvqkd.models.teachers import Teacher, TeacherInfo
from mvqkd.storage.contract import TableContract
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.batch_bound import find_batch_seconds
from mvqkd.workers.decode_ahead import length_sorted_batches
from mvqkd.workers.embed import Embedder
from mvqkd.workers.extract import Extractor
from mvqkd.workers.shard import Shard, read_shard_cuts, write_shard_cuts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction.on_device", description=__doc__)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="hubert-xlarge")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--shard-hours", type=float, default=1.0)
    parser.add_argument("--utterance-s", type=float, default=12.0)
    parser.add_argument("--batch-seconds", type=float, help="by default what is found best")
    parser.add_argument("--decode-threads", type=int, default=6)
    parser.add_argument("--search", default="fast")
    parser.add_argument("--pairs", type=int, default=5)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(parser.parse_args(), Path(folder))))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Pairs of the bare teacher and the worker, in turn; the first is a warm-up."""
    device = torch.device(arguments.device)
    teacher = random_teacher(SHAPES[arguments.shape], device, arguments.dtype, compile=False)
    torch.manual_seed(0)
    quantizer = Quantizer(teacher.info.dim, 256, 8).to(device)
    sources = sorted(arguments.audio.rglob("*.flac"))
    cuts = write_speech(folder / "audio", sources, hours=arguments.hours, utterance_s=arguments.utterance_s)
    plan, shards = write_plan(cuts, folder / "plan", arguments)
    loader = AudioLoader(RATE)
    batch_seconds = arguments.batch_seconds
    if batch_seconds is None:
        batch_seconds = find_batch_seconds(teacher, [loader(cut) for cut in cuts[:64]], device=device)
    embedder = Embedder(teacher, loader, batch_seconds=batch_seconds, decode_threads=arguments.decode_threads)
    batches = []
    for shard in shards:
        own = list(read_shard_cuts(plan, shard))
        for batch in length_sorted_batches(own, [cut.duration for cut in own], batch_seconds=batch_seconds):
            batches.append([loader(cut) for cut in batch])
    seconds = []
    meters: dict[str, float] = {}
    for number in range(arguments.pairs + 1):
        alone_s = bare(teacher, batches, device)
        table = IndexTable.create(
            open_location(str(folder / f"table-{number}")), contract_of(teacher.info, arguments.search)
        )
        extractor = Extractor(embedder=embedder, tables=[(table, quantizer)], plan=plan)
        actor_s = run_worker(extractor, shards)
        meters = extractor.meters.read()
        if number:
            seconds.append((alone_s, actor_s))
    hours = sum(cut.duration for cut in cuts) / 3600
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "shape": arguments.shape,
        "dtype": arguments.dtype,
        "batch_seconds": batch_seconds,
        "bare_teacher_hours_per_hour": hours * 3600 / median(alone for alone, _ in seconds),
        "actor_hours_per_hour": hours * 3600 / median(actor for _, actor in seconds),
        "actor_to_bare_teacher": median(alone / actor for alone, actor in seconds),
        "all": [round(alone / actor, 3) for alone, actor in seconds],
        "share_teacher": meters["teacher_busy_s"] / meters["running_s"],
        "share_quantizer": meters["quantizer_busy_s"] / meters["running_s"],
        "share_waiting_for_audio": meters["waited_s"] / meters["running_s"],
    }


def write_plan(
    cuts: Sequence[MonoCut], folder: Path, arguments: argparse.Namespace
) -> tuple[Location, list[Shard]]:
    """Shards of `--shard-hours`."""
    plan, each = open_location(str(folder)), max(1, int(arguments.shard_hours * 3600 / arguments.utterance_s))
    firsts = range(0, len(cuts), each)
    return plan, [write_shard_cuts(plan, n, cuts[first : first + each]) for n, first in enumerate(firsts)]


def bare(teacher: Teacher, batches: Sequence[Sequence[Tensor]], device: torch.device) -> float:
    """Seconds of the teacher alone."""
    began = time.perf_counter()
    for batch in batches:
        teacher.embed_batch(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def contract_of(info: TeacherInfo, search: str) -> TableContract:
    """Of a table of eight codebooks."""
    return TableContract(
        teacher_fingerprint=info.fingerprint,
        teacher_name=info.name,
        layer=info.layer,
        quantizer_id="00000000",
        num_codebooks=8,
        codebook_size=256,
        frame_rate_hz=info.frame_rate_hz,
        frame_offset_s=info.frame_offset_s,
        sample_rate_hz=RATE,
        search=search,
    )


if __name__ == "__main__":
    main()
