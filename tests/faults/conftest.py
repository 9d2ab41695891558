"""A run to disturb, and the two kinds of places that its results lie in."""

import sys
from pathlib import Path

import pytest
from s3_server import S3Server

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workers"))  # for the fake teacher

from faults_rig import Faults, Rig, make_rig


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return make_rig(tmp_path_factory.mktemp("rig"))


@pytest.fixture
def local(rig: Rig, tmp_path: Path) -> Faults:
    return rig.at(tmp_path, str(tmp_path / "run"))


@pytest.fixture
def on_s3(rig: Rig, tmp_path: Path, s3_environment: S3Server) -> Faults:
    return rig.at(tmp_path, f"s3://{s3_environment.bucket}/{tmp_path.name}")


@pytest.fixture(params=["local", "s3"])
def faults(request: pytest.FixtureRequest) -> Faults:
    """The run at each kind of place."""
    name = {"local": "local", "s3": "on_s3"}[request.param]
    found: Faults = request.getfixturevalue(name)
    return found
