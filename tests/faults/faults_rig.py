"""A run whose workers do mischief on cue: the real stage, dispatcher and `Extractor` around a teacher that loads in no
time, so that a fault costs a test seconds.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import objects, write_corpus
from workers_fakes import RATE, FakeTeacher, make_quantizer

from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.location import Location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.embed import Embedder
from mvqkd.workers.extract import Extractor, ExtractSettings, ShardReport
from mvqkd.workers.quantizer_record import TrainingData, load_quantizer, save_quantizer
from mvqkd.workers.shard import Shard

SETTINGS = "mvqkd.workers.extract.ExtractSettings"
"""What a test puts another class in the place of."""


@dataclass(frozen=True, kw_only=True)
class Mischief:
    """What goes wrong in the workers of a run.

    Attributes:
        folder: remembers what has happened already, over all processes.
        faults: by the position of a shard, what happens while it is worked on:
            kill: once, after its first batch, the process is killed.
            kill_after_put: once, when it was committed and nobody knows yet.
            deadly: as kill, and every time.
            hang: once, it never comes to an end. raise: once, an error. term: once, SIGTERM; the work goes on.
        slow_s: how long each batch takes.
        environment: variables of the workers; None takes one away.
        clock_s: how much the clock of the workers is wrong.
    """

    folder: Path
    faults: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    slow_s: float = 0.0
    environment: Mapping[str, str | None] = field(default_factory=dict)
    clock_s: float = 0.0

    def once(self, kind: str, shard: Shard) -> bool:
        """Whether this is the first time."""
        if kind not in self.faults.get(shard.position, ()):
            return False
        try:
            (self.folder / f"{kind}-{shard.position}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def log(self, line: str) -> None:
        """One line of the log of all processes."""
        with (self.folder / "log").open("a") as file:
            file.write(f"{line}\n")

    def read_log(self) -> list[list[str]]:
        """Its lines, in words."""
        file = self.folder / "log"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def computed(self) -> list[int]:
        """Positions of the shards that the teacher was given, as often as it was; none was in the table then."""
        lines = [(int(position), state) for word, position, state in self.read_log() if word == "computes"]
        assert not [position for position, state in lines if state == "committed"], "computed again"
        return [position for position, _ in lines]

    def met(self, kind: str) -> int:
        """How many shards a fault has struck."""
        return len(list(self.folder.glob(f"{kind}-*")))


@dataclass(frozen=True, kw_only=True)
class FaultySettings(ExtractSettings):
    """Of workers with the fake teacher, that do mischief."""

    mischief: Mischief

    def build(self) -> "Faulty":
        for name, value in self.mischief.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.mischief.clock_s:
            put_clock_wrong(self.mischief.clock_s)
        loader = AudioLoader(RATE, s3=self.embedder.options, root=self.embedder.root)
        embedder = Embedder(
            FakeTeacher(), loader, batch_seconds=self.embedder.batch_seconds, decode_threads=2
        )
        tables = [(each.table, load_quantizer(each.quantizer)[0]) for each in self.tables]
        return Faulty(
            embedder=embedder,
            tables=tables,
            plan=self.plan,
            max_unreadable=self.max_unreadable,
            mischief=self.mischief,
        )


class Faulty(Extractor):
    """An `Extractor` that says what it computes, and does mischief."""

    def __init__(self, *, mischief: Mischief, **settings: Any) -> None:
        super().__init__(**settings)
        self._mischief = mischief
        self._here = threading.local()

    def run(
        self,
        shard: Shard,
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> ShardReport:
        self._here.shard = shard

        def noted(content: dict[str, Any]) -> None:
            note(content)
            self._strike(shard)

        report = super().run(shard, last_attempt=last_attempt, note=noted)
        if self._mischief.once("kill_after_put", shard):
            os.kill(os.getpid(), signal.SIGKILL)
        return report

    def _strike(self, shard: Shard) -> None:
        mischief = self._mischief
        time.sleep(mischief.slow_s)
        if mischief.once("kill", shard) or "deadly" in mischief.faults.get(shard.position, ()):
            os.kill(os.getpid(), signal.SIGKILL)
        if mischief.once("term", shard):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # this thread is not the one that hears it
        if mischief.once("raise", shard):
            raise RuntimeError("mischief")
        while mischief.once("hang", shard):
            time.sleep(3600)

    def _code(self, *arguments: Any) -> Any:
        shard: Shard = self._here.shard
        (table,) = self._tables
        committed = table.is_committed(shard.name(table.contract.digest()))
        self._mischief.log(f"computes {shard.position} {'committed' if committed else 'new'}")
        return super()._code(*arguments)


def put_clock_wrong(seconds: float) -> None:
    """Shift what this process takes for the time, also the time that requests to S3 are signed with."""
    import datetime

    import botocore.auth

    now, utc_now = time.time, botocore.auth.get_current_datetime
    time.time = lambda: now() + seconds
    botocore.auth.get_current_datetime = lambda **options: (
        utc_now(**options) + datetime.timedelta(seconds=seconds)
    )


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A planned run with a quantizer, and the table that it makes when nothing goes wrong.

    Attributes:
        tree: its run file; `storage.root` is the folder with plan and quantizer.
        undisturbed: the objects of the table.
    """

    tree: dict[str, Any]
    undisturbed: dict[str, bytes]

    @property
    def shards(self) -> list[str]:
        """Files of the table."""
        return [name for name in self.undisturbed if name.startswith("shard-")]

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

    def extract(self, mischief: Mischief, *, cluster: str = "local") -> dict[str, Any]:
        """The stage in this process, on the Ray of the tests."""
        run = self.with_keys("cluster", address=cluster).run
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SETTINGS, partial(FaultySettings, mischief=mischief))
            return extract_stage(run)

    def check(self) -> None:
        """The table is that of the undisturbed run, byte for byte."""
        found = objects(self.run.table)
        assert found.keys() == self.rig.undisturbed.keys()
        assert found == self.rig.undisturbed


def run_of(tree: dict[str, Any], folder: Path) -> Run:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return Run(load_config(path, []))


def copy(source: Location, target: Location) -> None:
    for name in source.list():
        target.replace(name, source.read_bytes(name))


def make_rig(folder: Path, *, cuts: int = 20, shard_hours: float = 0.0006) -> Rig:
    """Some ten shards of two or three cuts, each of which is a batch."""
    write_corpus(folder / "corpus", train=cuts)
    teacher = folder / "teacher"
    teacher.mkdir()
    for name, content in (("config", {"model_type": "hubert"}), ("preprocessor_config", {"sampling_rate": RATE})):
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
    (folder / "marks").mkdir()
    faults = Faults(rig=Rig(tree=tree, undisturbed={}), folder=folder, tree=tree)
    faults.extract(faults.mischief(), cluster="none")
    return Rig(tree=tree, undisturbed=objects(run.table))


def save_fake_quantizer(run: Run) -> None:
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
