"""Our quantizer beside multi_quantization and FAISS, in one run on one machine.

    python -m benchmarks.quantizer --corpus FOLDER --teacher FOLDER [--peer-checkpoint FILE]
    python -m benchmarks.quantizer --train-frames train.npy --test-frames test.npy [--device cuda]

Prints a table for the embeddings and one for Gaussian frames, and writes results.json and plot.png into --out.
What is measured already is kept there: a run that was interrupted goes on, the same run again only prints.
Exit code 3: some figures could not be had; the others are complete.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.quantizer.embeddings import corpus_embeddings
from benchmarks.quantizer.files import write_json
from benchmarks.quantizer.frames import Dataset, dataset_of_files, gaussian_dataset
from benchmarks.quantizer.one import SAME_CODEBOOKS, Job
from benchmarks.quantizer.plot import draw_plot
from benchmarks.quantizer.report import show_tables, with_ratios
from benchmarks.quantizer.run import (
    MEASUREMENT_VERSION,
    device_name,
    jobs_for,
    run_all,
    same_codebooks_job,
    versions,
)
from benchmarks.quantizer.systems import SYSTEMS

SOME_FAILED = 3


def main() -> int:
    """Parse, run, print; returns the exit code."""
    parser = make_parser()
    arguments = parser.parse_args()
    try:
        jobs, report = prepare(arguments)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    rows, report["failed"] = run_all(jobs)
    for row in rows:
        if row["system"] == SAME_CODEBOOKS:
            report["same_codebooks"] = row
    dims = {dataset["name"]: dataset["dim"] for dataset in report["datasets"]}
    report["rows"] = with_ratios([row for row in rows if row["system"] != SAME_CODEBOOKS], dims)
    show_tables(report)
    out: Path = arguments.out
    write_json(out / "results.json", report)
    drawn = draw_plot(report, out / "plot.png")
    print(f"\n{out / 'results.json'}" + (f", {out / 'plot.png'}" if drawn else ""))
    if not drawn:
        print("no plot.png: nothing to draw, or matplotlib is not installed: pip install matplotlib")
    if arguments.json:
        print(json.dumps(report))
    return SOME_FAILED if report["failed"] else 0


def prepare(arguments: argparse.Namespace) -> tuple[list[Job], dict[str, Any]]:
    """The jobs of a run, and the report as far as it is known before them.

    Raises:
        ValueError: the arguments do not go together, or a file is not what it should be.
        FileNotFoundError: a file is missing.
        ModuleNotFoundError: a package is needed and not installed.
    """
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no GPU here; leave it out")
    left_out = {name: reason for name in arguments.systems if (reason := SYSTEMS[name].missing())}
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    systems = [name for name in SYSTEMS if name in arguments.systems and name not in left_out]
    if not systems:
        raise ValueError("no system is left to measure; install one of those above or name others")
    embeddings = embeddings_of(arguments, device)
    shared = Job(
        dataset=embeddings,
        budget_s=60 * arguments.minutes,
        device=str(device),
        threads=arguments.threads or torch.get_num_threads(),
        seed=arguments.seed,
        probe_steps=arguments.probe_steps,
        probe_frames=arguments.probe_frames,
        peer_encode_frames=arguments.peer_encode_frames,
        identity={**versions(), "machine": device_name(device), "measurement": str(MEASUREMENT_VERSION)},
    )
    datasets = [embeddings]
    jobs = jobs_for(shared, embeddings, systems, arguments.bytes, arguments.out)
    if arguments.peer_checkpoint is not None:
        jobs.insert(0, same_codebooks_job(shared, embeddings, arguments.peer_checkpoint, arguments.out))
    if not arguments.no_gaussian:
        datasets.append(gaussian_dataset())
        shared = replace(shared, budget_s=60 * arguments.gaussian_minutes)
        jobs += jobs_for(shared, datasets[-1], systems, arguments.bytes, arguments.out)
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(arguments).items()}
    sizes = ("name", "dim", "train_frames", "test_frames", "digest")
    return jobs, {
        "settings": settings,
        "versions": versions(),
        "threads": shared.threads,
        "device": str(device),
        "device_name": device_name(device),
        "datasets": [{name: getattr(dataset, name) for name in sizes} for dataset in datasets],
        "left_out": left_out,
    }


def embeddings_of(arguments: argparse.Namespace, device: torch.device) -> Dataset:
    """The frames that were given, or those of the corpus that was.

    Raises:
        ValueError: not exactly one of the two was given, or it is not what it should be.
        FileNotFoundError: a file is missing.
        ModuleNotFoundError: a package is needed and not installed.
    """
    frames = (arguments.train_frames, arguments.test_frames)
    corpus = (arguments.corpus, arguments.teacher)
    given = [pair for pair in (frames, corpus) if pair != (None, None)]
    if len(given) != 1 or None in given[0]:
        raise ValueError("give --corpus and --teacher, or --train-frames and --test-frames")
    if given[0] is corpus:
        frames = corpus_embeddings(*corpus, arguments.out, device)
    return dataset_of_files(*frames, arguments.max_train_frames)


def make_parser() -> argparse.ArgumentParser:
    """All arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", type=Path, help="folder with transcripts.tsv and audio/<split>/<id>.flac")
    add("--teacher", type=Path, help="folder of a Whisper checkpoint of transformers")
    add("--train-frames", type=Path, help=".npy of floats (frames, dim), in place of --corpus")
    add("--test-frames", type=Path, help="the same, of other speakers")
    add("--out", type=Path, default=Path("runs/benchmark-quantizer"))
    add("--bytes", type=_count, nargs="+", default=[4, 8, 16], help="per frame")
    add("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="SYSTEM")
    add("--minutes", type=_positive, default=10.0, help="that ours, the peer and FAISS LSQ may fit each")
    add("--gaussian-minutes", type=_positive, default=1.0, help="the same, on Gaussian frames")
    add("--no-gaussian", action="store_true")
    add("--peer-checkpoint", type=Path, help="of multi_quantization: time encoding on its codebooks too")
    add("--peer-encode-frames", type=_count, default=512, help="that its encoding speed is measured on")
    add("--max-train-frames", type=_count, help="drawn evenly; default: all")
    add("--probe-frames", type=_count, default=30_000, help="the peer may need half an hour to code so many")
    add("--probe-steps", type=_count, default=300)
    add("--seed", type=int, default=1)
    add("--device", default="cpu", help="of ours and the peer; FAISS runs on the CPU")
    add("--threads", type=_count, help="default: torch's")
    add("--json", action="store_true", help="print the report as one JSON object on the last line")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
