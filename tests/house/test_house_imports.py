"""A user's own folders named as our rooms, earlier on the path, are in nobody's way; light commands stay light."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def someones_folder(tmp_path: Path) -> Path:
    """A project with folders of its own, each of which would break a package that is imported as `models`."""
    for room in ("models", "workers", "storage", "pipeline"):
        (tmp_path / "project" / room).mkdir(parents=True)
        (tmp_path / "project" / room / "__init__.py").write_text("MINE = True\n")
    return tmp_path / "project"


def run(folder: Path, path: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(path)])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


USE = (
    "import models, workers; assert models.MINE and workers.MINE\n"
    "from mvqkd.models.quantizer import FitConfig\nfrom mvqkd.storage.table import IndexTable\n"
    "from mvqkd.pipeline.cli import app\nimport mvqkd\nprint(mvqkd.__file__)"
)


def test_a_checkout_beside_a_users_folders(someones_folder: Path) -> None:
    result = run(someones_folder, REPOSITORY, USE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(REPOSITORY / "mvqkd/__init__.py")


@pytest.mark.integration
def test_a_wheel_beside_a_users_folders(someones_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for file in files:
        if (
            file.endswith((".py", ".toml", "README.md", "LICENSE", ".j2", ".css", ".js"))
            and (REPOSITORY / file).is_file()
        ):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_bytes((REPOSITORY / file).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), "."], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    tops = {path.name for path in installed.iterdir()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mvqkd"}
    templates = {path.name for path in (installed / "mvqkd/pipeline/show/templates").iterdir()}
    assert templates == {"compare.html.j2", "compare.css", "compare.js"}
    result = run(someones_folder, installed, USE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(installed / "mvqkd/__init__.py")
