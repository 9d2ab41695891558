"""A local Ray in the environments of schedulers, containers and `uv run`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvqkd.pipeline.cluster.environment import (
    LONGEST_TEMP_DIR,
    METRICS,
    as_in_job,
    local_environment,
    ray_temp_dir,
)
from mvqkd.pipeline.run_sections import ClusterConfig

REPOSITORY = Path(__file__).resolve().parents[2]
LONG = "slurm.job.123456." + "x" * 60


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that what the code under test sets is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="m") as folder:
        yield Path(folder)


def test_what_ray_takes_is_left_alone(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    assert ray_temp_dir() is None
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert ray_temp_dir() is None


def test_a_long_tmpdir_is_replaced_by_a_private_folder(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short / LONG))
    private = short / f"mvqkd-{os.getuid()}"
    assert ray_temp_dir([str(short)]) == str(private / "ray")
    assert private.stat().st_mode & 0o777 == 0o700
    assert ray_temp_dir([str(short)]) == str(private / "ray")
    assert not (short / LONG).exists()


def test_the_longest_that_fits(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    room = LONGEST_TEMP_DIR - len(f"{short}//ray")
    monkeypatch.setenv("RAY_TMPDIR", str(short / ("y" * room)))
    assert ray_temp_dir() is None
    monkeypatch.setenv("RAY_TMPDIR", str(short / ("y" * (room + 1))))
    with pytest.raises(ConnectionError, match=r"RAY_TMPDIR: .* bytes long.*; unset it"):
        ray_temp_dir()
    # The name of a session as Ray makes it, with the longest process id of Linux.
    session = "session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"
    assert len(f"{short}/{'y' * room}/ray/{session}") == (107 if sys.platform.startswith("linux") else 103)


def test_a_folder_that_cannot_be_written(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "t").mkdir()
    (short / "t" / "ray").write_text("a file")
    monkeypatch.setenv("TMPDIR", str(short / "t"))
    assert ray_temp_dir([str(short / "none"), str(short)]) == str(short / f"mvqkd-{os.getuid()}" / "ray")
    monkeypatch.setenv("RAY_TMPDIR", str(short / "t"))
    with pytest.raises(ConnectionError, match=r"RAY_TMPDIR: .*ray cannot be written to; unset it"):
        ray_temp_dir([str(short)])


def test_no_place_at_all(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short / LONG))
    (short / "file").write_text("")
    with pytest.raises(ConnectionError, match=r"TMPDIR: .*; set RAY_TMPDIR to a short folder"):
        ray_temp_dir([str(short / "none"), str(short / "file")])


@pytest.mark.parametrize("kind", ["link", "open"])
def test_a_folder_of_somebody_else_is_not_taken(
    short: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(short / LONG))
    planted, other = short / "a" / f"mvqkd-{os.getuid()}", short / "b"
    planted.parent.mkdir()
    other.mkdir()
    if kind == "link":
        planted.symlink_to(other)
    else:
        planted.mkdir()
        planted.chmod(0o777)
    assert ray_temp_dir([str(planted.parent), str(other)]) == str(other / planted.name / "ray")


@pytest.mark.parametrize("value", ["", "relative"])
def test_a_tmpdir_that_is_no_absolute_path(short: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TMPDIR", value)
    found = ray_temp_dir([str(short)])
    assert found in ("/tmp/ray", str(short / f"mvqkd-{os.getuid()}" / "ray"))


def test_a_token_that_is_written_nowhere(tmp_path: Path) -> None:
    with local_environment():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_MODE" not in os.environ
    assert not (tmp_path / "home").exists()


def test_the_token_of_the_home_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "home/.ray").mkdir(parents=True)
    (tmp_path / "home/.ray/auth_token").write_text("t" * 64)
    with local_environment():
        assert "RAY_AUTH_TOKEN" not in os.environ


def test_what_the_user_says_counts_but_for_open_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (METRICS, "DASHBOARD_METRIC_PORT"):  # a Ray that other tests share may have set them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with local_environment():
        assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("token", "mine")
        assert os.environ[METRICS] == "0"
        assert os.environ["DASHBOARD_METRIC_PORT"] == "-1"
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("disabled", "mine")
    monkeypatch.setenv(METRICS, "1")
    with local_environment():
        assert os.environ[METRICS] == "1"
        assert "DASHBOARD_METRIC_PORT" not in os.environ


def test_the_file_of_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConnectionError, match=r"RAY_AUTH_TOKEN_PATH: .*/token cannot be read; unset it"):
        local_environment().__enter__()
    (tmp_path / "token").write_text("t" * 64)
    with local_environment():
        assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("address", "in_job", "meant"),
    [
        ("local", True, "auto"),
        ("local", False, "local"),
        ("none", True, "none"),
        ("10.0.0.1:6379", True, "10.0.0.1:6379"),
    ],
)
def test_what_an_address_means_in_a_job(
    monkeypatch: pytest.MonkeyPatch, address: str, in_job: bool, meant: str
) -> None:
    if in_job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert as_in_job(ClusterConfig(address=address)).address == meant


START = """
import os, ray
from mvqkd.pipeline.cluster.connect import cluster
from mvqkd.pipeline.run_sections import ClusterConfig
with cluster(ClusterConfig(num_cpus=1)):
    print("WORKS IN", ray.get(ray.remote(lambda: os.getcwd()).remote()))
"""


@pytest.mark.integration
def test_ray_starts_with_a_long_tmpdir_without_a_home_and_under_uv(short: Path) -> None:
    """All at once: a scheduler's TMPDIR, a home that is no folder, and `uv run` beside a file of 600 MiB."""
    pytest.importorskip("uv")
    checkout = short / "checkout"
    checkout.mkdir()
    (checkout / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    with (checkout / "large.bin").open("wb") as file:
        file.truncate(600 << 20)
    (short / LONG).mkdir()
    (short / "home").write_text("a file")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "UV_"))}
    environment |= {
        "TMPDIR": str(short / LONG),
        "HOME": str(short / "home"),
        "PYTHONPATH": str(REPOSITORY),
        "UV_CACHE_DIR": str(short / "cache"),
    }
    uv = [sys.executable, "-m", "uv", "run", "--no-project", "--offline", "--python", sys.executable, "--"]
    done = subprocess.run(
        [*uv, sys.executable, "-c", START],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == f"WORKS IN {checkout}", done.stderr[-3000:]
