"""How long an extraction worker takes from its actor's creation to its first shard.

python -m benchmarks.worker_start [--teacher FOLDER] [--workers 2] [--rounds 3] [--json]

A tiny corpus is made and a quantizer fitted on it in this process; then, on a local Ray, `--workers` actors are made at
the same time, as `mvqkd extract` makes them, and each is given one shard. Seconds: `ready` until the last of them has
built its worker (process, imports, teacher, quantizer), `first_shard` until the last of them has committed a shard, and
`cpu` is what each had computed by then, which does not depend on what else the machine does (Linux).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import soundfile

from mvqkd.pipeline.cluster.actors import actor_of
from mvqkd.pipeline.cluster.connect import cluster, read_board, start_board
from mvqkd.pipeline.cluster.pool import Resources
from mvqkd.pipeline.run_config import ClusterConfig
from mvqkd.pipeline.run_file import config_from_text
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.pipeline.stages.sizing import embedder_settings, extract_share
from mvqkd.storage.table import IndexTable
from mvqkd.workers.extract import ExtractSettings, TableSettings
from mvqkd.workers.quantizer_record import load_record

RUN = """
corpus: {{root: {folder}/corpus, test: null}}
teacher: {{path: {teacher}}}
quantizer: {{num_codebooks: 4, codebook_size: 16, anneal_rounds: 4, round_frames: 256}}
extract: {{shard_hours: 0.0005, batch_seconds: 30.0}}
cluster: {{address: none}}
storage: {{root: {folder}/run}}
"""


def small_run(folder: Path, teacher: Path, *, shards: int) -> Run:
    """A planned and fitted run of noise, one cut of two seconds for each shard."""
    rng = np.random.default_rng(0)
    audio = folder / "corpus/audio/train"
    audio.mkdir(parents=True)
    lines = ["id\tsplit\tspeaker\ttext"]
    for number in range(max(shards, 20)):
        soundfile.write(audio / f"{number:03d}.flac", rng.normal(0, 0.1, 32_000).astype(np.float32), 16_000)
        lines.append(f"{number:03d}\ttrain\ts{number % 4}\tNOISE")
    (folder / "corpus/transcripts.tsv").write_text("\n".join(lines) + "\n")
    run = Run(config_from_text(RUN.format(folder=folder, teacher=teacher.resolve()), "run.yaml"))
    fit_stage(run)
    return run


def settings_of(run: Run) -> ExtractSettings:
    """As the extract stage makes them, with a table of its own for each call."""
    contract = load_record(run.quantizer).contract(search=run.config.extract.search)
    table = IndexTable.create(run.root.join(f"table-{time.monotonic_ns()}"), contract)
    share = extract_share(run, Resources(cpus=os.cpu_count() or 1, gpus=0, machine_cpus=os.cpu_count() or 1))
    return ExtractSettings(
        embedder=embedder_settings(run, share),
        tables=(TableSettings(table=table, quantizer=run.quantizer),),
        plan=run.plan("train"),
        max_unreadable=0.0,
    )


def timed(run: Run, *, workers: int) -> dict[str, float]:
    """Seconds from the actors' creation; one shard for each."""
    shards = list(need_plan(run, "train").shards)[:workers]
    settings, board = settings_of(run), start_board()
    actor = actor_of(settings, cpus=0, gpus=0)
    began = time.perf_counter()
    made = [actor.remote(settings, board) for _ in range(workers)]
    ray.get([each.__ray_ready__.remote() for each in made])
    ready = time.perf_counter() - began
    ray.get([each.run.remote(shard, last_attempt=True) for each, shard in zip(made, shards, strict=True)])
    first = time.perf_counter() - began
    cpu = [cpu_seconds(int(note["worker"].rpartition("/")[2])) for note in read_board(board).values()]
    for each in made:
        ray.kill(each)
    return {"ready": ready, "first_shard": first, "cpu": statistics.mean(cpu)}


def cpu_seconds(process: int) -> float:
    """Of a process since its start, of all its threads."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def shown(seconds: dict[str, float]) -> str:
    """One line."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in seconds.items())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, default=Path("demo/teacher"), help="folder of a checkpoint")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = small_run(Path(folder), arguments.teacher, shards=arguments.workers)
        with cluster(ClusterConfig()):
            rounds = [timed(run, workers=arguments.workers) for _ in range(arguments.rounds)]
    for number, seconds in enumerate(rounds):
        print(f"round {number}: {shown(seconds)}")
    result = {key: statistics.median(seconds[key] for seconds in rounds) for key in rounds[0]}
    print(f"median: {shown(result)}")
    if arguments.json:
        print(json.dumps({"workers": arguments.workers, "load": os.getloadavg()[0], **result}))


if __name__ == "__main__":
    main()
