"""A tiny corpus and run files for tests that go through all rooms."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from s3_server import S3Server

from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.storage.location import Location

Done = tuple[dict[str, Any], Path]
"""The run file of a finished run as a mapping, and its folder."""

WORDS = ("ONE", "TWO", "THREE", "FOUR")


def write_corpus(root: Path, *, train: int = 12, test: int = 3) -> None:
    """Tones that stand for words: enough to run every stage on, nothing to learn from."""
    rng = np.random.default_rng(0)
    lines = ["id\tsplit\tspeaker\ttext"]
    for split, count in (("train", train), ("test", test)):
        folder = root / "audio" / split
        folder.mkdir(parents=True)
        for number in range(count):
            words = rng.integers(0, len(WORDS), size=2 + number % 3)
            tones = [np.sin(np.arange(6000) * (0.05 + 0.07 * w)) * 0.3 for w in words]
            audio = np.concatenate(tones) + rng.normal(0, 0.01, 6000 * len(words))
            name = f"{split}-{number:03d}"
            soundfile.write(folder / f"{name}.flac", audio.astype(np.float32), 16_000)
            lines.append(f"{name}\t{split}\ts{number % 4}\t{' '.join(WORDS[w] for w in words)}")
    (root / "transcripts.tsv").write_text("\n".join(lines) + "\n")


def run_tree(corpus: Path, teacher: Path, out: Path) -> dict[str, Any]:
    """A run file as a mapping; tests change it and write it."""
    return {
        "corpus": {"root": str(corpus)},
        "teacher": {"path": str(teacher)},
        "quantizer": {
            "num_codebooks": 2,
            "codebook_size": 16,
            "anneal_rounds": 4,
            "round_frames": 256,
        },
        "extract": {"shard_hours": 0.001, "batch_seconds": 30.0},
        "student": {
            "encoder_dim": 16,
            "num_layers": 2,
            "ffn_dim": 32,
            "num_heads": 2,
            "conv_kernel": 7,
            "predictor_dim": 16,
            "joiner_dim": 16,
        },
        "distill": {"epochs": 2, "student_layer": 1, "batch_seconds": 30.0, "average_epochs": 1},
        "cluster": {"address": "none", "num_cpus": 2},
        "storage": {"root": str(out)},
    }


def write_run_file(tree: dict[str, Any], folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def make_run(tree: dict[str, Any], folder: Path, *overrides: str) -> Run:
    return Run(load_config(write_run_file(tree, folder), overrides))


def objects(location: Location) -> dict[str, bytes]:
    """Name and bytes of every object of a folder and of the failures in it."""
    failures = location.join("_failures")
    found = {name: location.read_bytes(name) for name in location.list()}
    return found | {f"_failures/{name}": failures.read_bytes(name) for name in failures.list()}


def copy_of(done: Done, folder: Path, *parts: str) -> dict[str, Any]:
    """A run file for a copy of some parts of the finished run."""
    tree, finished = done
    for part in parts:
        if (finished / part).is_file():
            shutil.copy(finished / part, folder / "run" / part)
        else:
            shutil.copytree(finished / part, folder / "run" / part)
    return {**tree, "storage": {"root": str(folder / "run")}}


def many_shards(done: Done, folder: Path) -> dict[str, Any]:
    """A run of some 40 shards with the quantizer of the finished run."""
    write_corpus(folder / "corpus", train=80)
    tree = copy_of(done, folder, "quantizer")
    return {
        **tree,
        "corpus": {"root": str(folder / "corpus")},
        "extract": {"shard_hours": 0.0006, "batch_seconds": 30.0},
    }


def on_s3(tree: dict[str, Any], server: S3Server, prefix: str) -> dict[str, Any]:
    """A run file for real Ray actors and a real S3 server."""
    storage = {
        "root": f"s3://{server.bucket}/{prefix}",
        "endpoint_url": server.endpoint_url,
        "region": "us-east-1",
    }
    return {**tree, "cluster": {"address": "local", "num_cpus": 2}, "storage": storage}
