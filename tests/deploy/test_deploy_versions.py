"""Versions are said in one place, the lock files; what has to repeat one is held to it here."""

import re
import tomllib
from pathlib import Path

import yaml

import mvqkd

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SETUP_NODE = (DEPLOY / "setup_node.sh").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
CLUSTER_FILES = [
    REPOSITORY / "ray_cluster.yaml",
    DEPLOY / "local_machines.yaml",
    *(DEPLOY / "kuberay").glob("*.yaml"),
]
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)(.*(?:\n {4}.*)*)", re.MULTILINE)


def pins(path: Path) -> dict[str, set[str]]:
    """Versions by package; a universal lock file may have two of one, for two platforms."""
    found: dict[str, set[str]] = {}
    for name, version, rest in PINNED.findall(path.read_text()):
        assert "--hash=sha256:" in rest, name
        found.setdefault(name, set()).add(version)
    return found


NODES = pins(DEPLOY / "requirements.lock")
ALL = pins(REPOSITORY / "requirements.lock")


def names_of(extra: str) -> set[str]:
    return {re.split(r"[\[<>=~! ;]", line)[0].lower() for line in PROJECT["optional-dependencies"][extra]}


def test_nodes_have_the_versions_that_were_tested() -> None:
    for name, versions in NODES.items():
        assert versions <= ALL.get(name, versions), f"{name}: `make lock` again"
    # What the tests do not install: the cloud's library, and what it needs.
    assert set(NODES) - set(ALL) <= {"boto3", "s3transfer"}


def test_nodes_have_all_that_the_product_needs_and_nothing_to_develop_with() -> None:
    needed = {re.split(r"[\[<>=~! ;]", line)[0].lower() for line in PROJECT["dependencies"]}
    assert needed | names_of("aws") <= set(NODES)
    assert not names_of("dev") & set(NODES)
    assert "setuptools" in NODES, "--no-build-isolation"


def test_ray_is_one_version() -> None:
    (version,) = NODES["ray"]
    assert f"ray[default,train]=={version}" in PROJECT["dependencies"]
    for name, path in (("raycluster", ("spec",)), ("rayjob", ("spec", "rayClusterSpec"))):
        spec = yaml.safe_load((DEPLOY / "kuberay" / f"{name}.yaml").read_text())
        for key in path:
            spec = spec[key]
        assert spec["rayVersion"] == version


def test_files_of_clusters_install_nothing_by_a_version_of_their_own() -> None:
    for path in CLUSTER_FILES:
        assert not re.search(r"pip install|==\d|:latest|nightly|ray-wheels", path.read_text()), path
    for text in (DOCKERFILE, SETUP_NODE):
        assert "--require-hashes -r deploy/requirements.lock" in text


def test_python_is_one_version() -> None:
    (of_image,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\S+)-slim$", DOCKERFILE, re.MULTILINE)
    (of_nodes,) = re.findall(r"--python (3\.\d+)", SETUP_NODE)
    (of_lock,) = re.findall(
        r"--python-version (\S+) .*deploy/requirements\.lock",
        (REPOSITORY / "Makefile").read_text().replace("\\\n", ""),
    )
    assert of_image == of_nodes == of_lock


def test_uv_is_one_version() -> None:
    files = (REPOSITORY / "Makefile").read_text(), DOCKERFILE, SETUP_NODE
    assert len({version for text in files for version in re.findall(r"uv==(\S+)", text)}) == 1


def test_the_image_has_the_version_of_the_package() -> None:
    tags = {
        tag
        for path in (DEPLOY / "Dockerfile", *CLUSTER_FILES)
        for tag in re.findall(r"/mvqkd:(\S+)", path.read_text())
    }
    assert tags == {mvqkd.__version__}
