"""A planned run that is disturbed: the real stage, pool and storage, around workers that do mischief on cue."""

import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from light_worker import LightSettings
from mischief import Mischief
from tiny import objects, write_corpus

from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.location import Location
from mvqkd.workers.quantizer_record import TrainingData, save_quantizer

Workers = Literal["light", "real"]

TESTS = Path(__file__).resolve().parents[1]
PATHS = ("..", ".", "faults", "workers")
"""Folders that the modules of these tests are imported from."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A planned run with a quantizer, and the tables that it makes when nothing goes wrong.

    Attributes:
        tree: its run file; `storage.root` is the folder with plan and quantizer.
        undisturbed: the objects of the table of each kind of workers.
    """

    tree: dict[str, Any]
    undisturbed: dict[Workers, dict[str, bytes]]

    @property
    def num_shards(self) -> int:
        """Of the plan."""
        return sum(name.startswith("shard-") for name in self.undisturbed["light"])

    def at(self, folder: Path, root: str, **storage: str) -> "Faults":
        """The run at another place, with plan and quantizer, without a table."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "marks").mkdir()
        tree = {**self.tree, "storage": {"root": root, **storage}}
        source, target = run_of(self.tree, folder), run_of(tree, folder)
        for part in ("plan/train", "quantizer"):
            copy(source.root.join(*part.split("/")), target.root.join(*part.split("/")))
        return Faults(rig=self, folder=folder, tree=tree)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """A run at its place, and what goes wrong in it."""

    rig: Rig
    folder: Path
    tree: dict[str, Any]

    @property
    def run(self) -> Run:
        return run_of(self.tree, self.folder)

    def with_keys(self, section: str, **keys: Any) -> "Faults":
        """With other keys in the run file."""
        return replace(self, tree={**self.tree, section: {**self.tree.get(section, {}), **keys}})

    def mischief(self, **settings: Any) -> Mischief:
        """What goes wrong, see `Mischief`."""
        return Mischief(folder=self.folder / "marks", **settings)

    def extract(
        self, mischief: Mischief, *, workers: Workers = "light", cluster: str = "local"
    ) -> dict[str, Any]:
        """The stage in this process, on the Ray of the tests."""
        with working_with(workers, mischief):
            return extract_stage(self.with_keys("cluster", address=cluster).run)

    def command(self, mischief: Mischief, *, workers: Workers = "light") -> list[str]:
        """The command in words."""
        content = self.folder / "mischief.pickle"
        content.write_bytes(pickle.dumps(mischief))
        run_file = write_tree(self.tree, self.folder)
        drive = TESTS / "faults/faults_drive.py"
        return [sys.executable, str(drive), str(run_file), str(content), workers]

    def start(self, mischief: Mischief, *, workers: Workers = "light") -> "Command":
        """The command in a process of its own, with the Ray that the run file names."""
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONPATH"] = os.pathsep.join(str(TESTS / folder) for folder in PATHS)
        return Command(self.command(mischief, workers=workers), environment)

    def committed(self) -> list[str]:
        """Files of the shards that are in the table."""
        return [name for name in self.run.table.list() if name.startswith("shard-")]

    def check(self, workers: Workers = "light") -> None:
        """The table is that of the undisturbed run, byte for byte."""
        found, wanted = objects(self.run.table), self.rig.undisturbed[workers]
        assert found.keys() == wanted.keys()
        assert found == wanted


class Command(subprocess.Popen[str]):
    """A process whose words are read while it works: where nobody reads, it stops as soon as a pipe is full."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._pool = ThreadPoolExecutor(2)
        assert self.stdout is not None
        assert self.stderr is not None
        self._said = [self._pool.submit(stream.read) for stream in (self.stdout, self.stderr)]

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """What it said, when it has ended."""
        self.wait(timeout)
        out, error = (said.result() for said in self._said)
        self._pool.shutdown()
        return out, error


@contextmanager
def working_with(workers: Workers, mischief: Mischief) -> Iterator[None]:
    """Let the stage make other workers than its own."""
    with pytest.MonkeyPatch.context() as patch:
        if workers == "real":
            from real_worker import RealSettings  # of all these the one with torch

            made: Any = partial(RealSettings, mischief=mischief)
        else:

            def made(*, tables: Any, plan: Location, **_: Any) -> LightSettings:
                return LightSettings(table=tables[0].table, plan=plan, mischief=mischief)

        patch.setattr("mvqkd.workers.extract.ExtractSettings", made)
        yield


def run_of(tree: dict[str, Any], folder: Path) -> Run:
    return Run(load_config(write_tree(tree, folder), []))


def write_tree(tree: dict[str, Any], folder: Path) -> Path:
    # Of the content's name, since a command may read it later than another one is written.
    text = yaml.safe_dump(tree)
    path = folder / f"run-{zlib.crc32(text.encode()):08x}.yaml"
    path.write_text(text)
    return path


def copy(source: Location, target: Location) -> None:
    for name in source.list():
        target.replace(name, source.read_bytes(name))


def make_rig(
    folder: Path,
    *,
    shard_hours: float = 0.0006,
    corpus: Callable[[Path], None] = lambda root: write_corpus(root, train=20),
    undisturbed: Sequence[Workers] = ("light", "real"),
) -> Rig:
    """A corpus, a plan and a quantizer; by default some ten shards of two or three cuts, each of which is a batch.

    Args:
        folder: for all of it.
        shard_hours: of the plan.
        corpus: writes one.
        undisturbed: for which kinds of workers the table is made.
    """
    corpus(folder / "corpus")
    teacher = folder / "teacher"
    teacher.mkdir()
    for name, content in (
        ("config", {"model_type": "hubert"}),
        ("preprocessor_config", {"sampling_rate": 16_000}),
    ):
        (teacher / f"{name}.json").write_text(json.dumps(content))
    tree = {
        "corpus": {"root": str(folder / "corpus"), "max_duration_s": 2.0},
        "teacher": {"path": str(teacher)},
        "extract": {"shard_hours": shard_hours, "batch_seconds": 2.0},
        "cluster": {"address": "none", "num_cpus": 2},
        "storage": {"root": str(folder / "run")},
    }
    run = run_of(tree, folder)
    need_plan(run, "train")
    save_fake_quantizer(run)
    rig = Rig(tree=tree, undisturbed={})
    for workers in undisturbed:
        faults = rig.at(folder / workers, str(folder / workers))
        faults.extract(faults.mischief(), workers=workers, cluster="none")
        rig.undisturbed[workers] = objects(faults.run.table)
    return rig


def save_fake_quantizer(run: Run) -> None:
    from workers_fakes import FakeTeacher, make_quantizer

    data = TrainingData(
        utterances=1,
        frames=1,
        valid_utterances=1,
        valid_frames=1,
        held_out="utterances",
        cuts_sha256="",
        left_out=[],
    )
    facts = {
        "teacher": asdict(FakeTeacher().info),
        "config": {},
        "settings": {},
        "training_data": data,
        "valid_rrl": 0.5,
        "usage_entropy_bits": [1.0, 1.0],
        "codebook_correlations": [[1.0, 0.0], [0.0, 1.0]],
        "history": [],
        "steps": 1,
        "seconds": 1.0,
    }
    save_quantizer(run.quantizer, make_quantizer(), facts)
