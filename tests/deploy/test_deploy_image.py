"""The image's recipe, as far as it can be read without building it."""

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = (REPOSITORY / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
LINES = [line.split(maxsplit=1) for line in RECIPE.splitlines() if line and not line.startswith("#")]
KNOWN = {"ARG", "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "CMD"}


def copied() -> list[str]:
    """What comes from the repository."""
    words = [rest.split() for name, rest in LINES if name == "COPY" and "--from=" not in rest]
    return [word for line in words for word in line[:-1] if not word.startswith("--")]


def test_instructions_are_known_and_it_ends_as_a_user_by_number() -> None:
    assert {name for name, _ in LINES} <= KNOWN, "ADD fetches without a checksum"
    users = [rest for name, rest in LINES if name == "USER"]
    assert users == ["1000:1000"] and "useradd --uid 1000" in RECIPE
    last_stage = [name for name, _ in LINES][max(n for n, (name, _) in enumerate(LINES) if name == "FROM") :]
    assert last_stage.count("COPY") == 2 and "USER" in last_stage


def test_the_whole_package_is_copied_and_nothing_else_goes_to_the_builder() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    rooms = set(settings["tool"]["setuptools"]["package-dir"].values())
    needed = {"pyproject.toml", settings["project"]["readme"], *settings["project"]["license-files"]}
    assert rooms | needed <= set(copied())
    assert all((REPOSITORY / name).exists() for name in copied())
    ignored = (REPOSITORY / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*" and {line[1:] for line in ignored if line.startswith("!")} == set(copied())


def test_no_secret_and_no_script_out_of_the_network() -> None:
    assert not re.search(r"(?i)(token|secret|password)\w*=(?!token)\S", RECIPE)
    assert not re.search(r"curl|https?://", RECIPE)
