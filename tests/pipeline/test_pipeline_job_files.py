"""What a job takes along, and what it refuses to."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import write_run_file

from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.job_files import LARGEST_UPLOAD, Job, prepare_job


@pytest.fixture
def project(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project, with all that must stay at home, as the working directory."""
    for name in (
        ".env",
        ".git/config",
        ".venv/lib.py",
        "runs/demo/table.parquet",
        "weights.safetensors",
        "notes.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("SECRET")
    for name in ("own/student.py", "own/parts/layer.py", "own/data.bin", "own/.hidden.py", "own/venv/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "own/venv/pyvenv.cfg").write_text("")
    write_run_file(tree, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(*include: str, **options: Any) -> Job:
    return prepare_job("extract", Path("run.yaml"), include=[Path(path) for path in include], **options)


def test_only_what_is_needed(project: Path) -> None:
    files = prepared("own").files
    assert files.run_file == "run.yaml"
    own = {name for name in files.files if not name.startswith("mvqkd/")}
    assert own == {"run.yaml", "own/student.py", "own/parts/layer.py"}
    assert all(name.endswith(".py") for name in files.files if name != "run.yaml")
    assert files.num_bytes < 2e6
    assert files.lines()[2:] == ["own/student.py: 0.0 kB", "own/parts/layer.py: 0.0 kB"]


def test_the_program_runs_from_what_was_taken_along(project: Path, tmp_path: Path) -> None:
    """Beside a folder of the user's that is called as one of ours."""
    (project / "models").mkdir()
    (project / "models/mine.py").write_text("HERE = True\n")
    job = prepared("models")
    job.files.copy_to(tmp_path / "job")
    code = "import models.mine, mvqkd.pipeline.cli, mvqkd.models.precision; print(mvqkd.__file__)"
    environment = {"PYTHONPATH": str(tmp_path / "job")}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == str(tmp_path / "job/mvqkd/__init__.py")


def test_the_command_and_its_name(project: Path) -> None:
    job = prepared(overrides=["extract.actors=2"], as_json=True)
    assert job.entrypoint == "python -m mvqkd extract run.yaml --set extract.actors=2 --json"
    assert job.prefix.startswith("mvqkd-extract-") and job.prefix == prepared().prefix
    assert job.content() == prepared(overrides=["extract.actors=2"]).content() != prepared().content()
    assert prepared(overrides=["storage.root=/elsewhere"]).prefix != job.prefix
    distill = prepare_job("distill", Path("run.yaml"), student="baseline")
    assert distill.entrypoint == "python -m mvqkd distill run.yaml --student baseline"
    assert distill.prefix != prepare_job("distill", Path("run.yaml")).prefix


@pytest.mark.parametrize(
    ("include", "message"),
    [
        (".env", r"--include .env: hidden files hold secrets.*its own environment"),
        ("gone.py", "there is no such file or folder"),
        ("runs", "no Python file in this folder"),
        ("other/run.yaml", "the job has another file run.yaml; rename it"),
        ("large.bin", r"the job's files are 2\d\.\d MB, more than the 21.0 MB.*large.bin \(21.0 MB\).*s3://"),
    ],
)
def test_what_is_refused(
    project: Path, tmp_path_factory: pytest.TempPathFactory, include: str, message: str
) -> None:
    with (project / "large.bin").open("wb") as file:
        file.truncate(LARGEST_UPLOAD)
    if include == "other/run.yaml":  # one outside of the working directory lies at the top
        other = tmp_path_factory.mktemp("other")
        (other / "run.yaml").write_text("")
        include = str(other / "run.yaml")
    with pytest.raises(ConfigError, match=message):
        prepared(include)


def test_places_that_are_others_in_a_job(project: Path) -> None:
    (project / "teacher").mkdir()
    with pytest.raises(
        ConfigError, match=r"storage.root runs/x, teacher.path teacher: relative paths.*s3://"
    ):
        prepared(overrides=["storage.root=runs/x", "teacher.path=teacher"])
    prepared(overrides=["storage.root=s3://bucket/x", "teacher.path=facebook/hubert-large-ll60k"])
    with pytest.raises(
        ConfigError, match=r"distill\.noise musan, distill\.init old/students/a: relative paths"
    ):
        prepared(
            overrides=["storage.root=s3://bucket/x", "distill.noise=musan", "distill.init=old/students/a"]
        )


def test_what_cannot_be_submitted(project: Path) -> None:
    with pytest.raises(ConfigError, match="inspect: no stage that can be submitted; there are plan, fit"):
        prepare_job("inspect", Path("run.yaml"))
    with pytest.raises(ConfigError, match="extract is not of one student"):
        prepared(student="mvqkd")
