"""`python -m benchmarks.planner --cuts 10000000`: how fast and in what memory `mvqkd plan` plans a large manifest.

Makes a Lhotse manifest of so many cuts (gzipped; a supervision with text, a recording with a file as its source) and
plans it. Prints cuts per second of wall time and of CPU time, and the peak of the memory of all processes together.
Making the manifest is timed apart.
"""

import argparse
import gzip
import json
import os
import random
import resource
import tempfile
import threading
import time
from pathlib import Path

RATE_HZ = 16_000
WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "how",
    "many",
    "more",
    "of",
    "them",
    "there",
    "were",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--cuts", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shard-hours", type=float, default=5.0)
    parser.add_argument("--usual", type=float, default=1.0, help="share of cuts without custom fields")
    parser.add_argument("--folder", help="where the manifest is kept for the next time; else it is deleted")
    parser.add_argument("--json", action="store_true", help="figures as one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / f"cuts-{arguments.cuts}-{arguments.usual:g}.jsonl.gz"
        began = time.perf_counter()
        if not manifest.exists():
            write_manifest(manifest, arguments.cuts, arguments.usual)
        made_s = time.perf_counter() - began
        figures = measure(manifest, Path(scratch), arguments.shard_hours, arguments.processes)
    figures = {"cuts": arguments.cuts, "manifest_s": round(made_s, 1), **figures}
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")


def write_manifest(path: Path, num_cuts: int, usual: float) -> None:
    """Cuts of 2 to 18 seconds with some 15 words, the same every time."""
    rng = random.Random(0)
    partial = path.with_suffix(".partial")
    with gzip.open(partial, "wt", encoding="utf-8", compresslevel=1) as file:
        for number in range(num_cuts):
            samples = rng.randrange(2 * RATE_HZ, 18 * RATE_HZ)
            name, duration = f"speaker{number % 5000:04d}-{number:08d}", samples / RATE_HZ
            text = " ".join(rng.choices(WORDS, k=15))
            supervision = {
                "id": name, "recording_id": name, "start": 0.0, "duration": duration, "channel": 0, "text": text,
                "language": "English", "speaker": name[:11],
            }  # fmt: skip
            source = {"type": "file", "channels": [0], "source": f"audio/{name[:11]}/{name}.flac"}
            recording = {
                "id": name, "sources": [source], "sampling_rate": RATE_HZ, "num_samples": samples,
                "duration": duration, "channel_ids": [0],
            }  # fmt: skip
            cut = {
                "id": name, "start": 0.0, "duration": duration, "channel": 0, "supervisions": [supervision],
                "recording": recording,
            }  # fmt: skip
            custom = {} if number % 1000 < 1000 * usual else {"custom": {"snr": 12.5}}
            file.write(json.dumps(cut | custom | {"type": "MonoCut"}) + "\n")
    partial.rename(path)


def measure(manifest: Path, folder: Path, shard_hours: float, processes: int) -> dict[str, float]:
    """Plan a manifest."""
    # Here, because the processes that parse import this module too, and the command's own main imports nothing.
    from mvqkd.storage.location import open_location
    from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig
    from mvqkd.workers.planner import make_plan

    config = CorpusConfig(format="cuts", root=str(manifest.parent), train=manifest.name, test=None)
    corpus = Corpus(config, sample_rate_hz=RATE_HZ)
    began, cpu = time.perf_counter(), cpu_seconds()
    with PeakMemory() as memory:
        plan = make_plan(
            corpus.planned("train", processes=processes),
            open_location(str(folder / "plan")),
            shard_hours=shard_hours,
            settings={},
            root=corpus.root,
        )
    wall_s, cpu_s = time.perf_counter() - began, cpu_seconds() - cpu
    return {
        "processes": processes,
        "planned": plan.num_cuts,
        "hours": round(plan.hours),
        "shards": len(plan.shards),
        "plan_bytes": sum(open_location(str(folder / "plan")).list().values()),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "cuts_per_wall_s": round(plan.num_cuts / wall_s),
        "cuts_per_cpu_s": round(plan.num_cuts / cpu_s),
        "peak_rss_mb": round(memory.peak_bytes / 1e6),
    }


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class PeakMemory:
    """The largest sum of the resident memory of this process and its children, looked at ten times a second (Linux)."""

    peak_bytes = 0

    def __enter__(self) -> "PeakMemory":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self.peak_bytes = max(self.peak_bytes, sum(map(resident_bytes, family(os.getpid()))))


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in children.read_text().split():
                found += family(int(child))
        except OSError:
            continue  # it has ended
    return found


def resident_bytes(pid: int) -> int:
    """Memory of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    main()
