"""The plan of the house: which room may import which, how long files and functions may be, one import name."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "workers", "models", "storage")
# Who may import whom; a room may always import itself.
MAY_IMPORT = {
    "pipeline": {"workers", "models", "storage"},
    "workers": {"models", "storage"},
    "models": set(),
    "storage": set(),
}
# What must not be needed in a room, so that it stays usable without.
NOT_IN = {
    "models": {"ray", "lhotse", "pyarrow", "fsspec", "s3fs", "pydantic"},
    "storage": {"ray", "torch", "lhotse", "transformers"},
    "workers": {"ray", "botocore", "s3fs", "fsspec", "typer", "rich"},
    "pipeline": {"botocore", "s3fs", "fsspec"},
}
RAY_FOLDER = "pipeline/cluster"
MOST_LINES, MOST_FUNCTION_LINES = 300, 60
SHAPE_SUFFIX = re.compile(r"\b[a-z_]+_[A-Z][A-Z0-9]{1,3}\b")

FILES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
OTHER_FILES = sorted(
    path
    for folder in ("benchmarks", "demo", "examples", "mvqkd", "tests")
    for path in (REPOSITORY / folder).rglob("*.py")
)


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of the imported modules, those inside of functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_run_one_way(path: Path) -> None:
    room = name(path).split("/")[0]
    for module in imports(ast.parse(path.read_text())):
        top, _, rest = module.partition(".")
        assert top not in ROOMS, f"{module}: rooms are imported as mvqkd.{module}"
        if top == "mvqkd" and rest:
            other = rest.split(".")[0]
            assert other == room or other in MAY_IMPORT[room], f"{room} may not import {module}"
        assert top not in NOT_IN[room], f"{room} does without {top}"
        if top == "ray":
            assert name(path).startswith(RAY_FOLDER), f"{module}: only {RAY_FOLDER} knows Ray"


@pytest.mark.parametrize("path", [*FILES, *OTHER_FILES], ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES, f"{name(path)}: is a room missing?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{name(path)}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_shape_suffixes_have_a_legend(path: Path) -> None:
    text = path.read_text()
    code = "\n".join(line.partition("#")[0] for line in text.splitlines())
    suffixes = {found.rpartition("_")[2] for found in SHAPE_SUFFIX.findall(code) if not found.isupper()}
    suffixes = {suffix for suffix in suffixes if suffix not in ("MB", "GB")}
    if suffixes:
        assert re.search("Shape suffix(es)?:", text), (
            f"{name(path)} uses {sorted(suffixes)} and says nowhere what they are"
        )


def test_no_module_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = "mvqkd." + name(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        graph[module] = set()
        for node in ast.parse(path.read_text()).body:  # at import time only
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[module] |= {node.module} | names
            elif isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names}
    graph = {module: {other for other in others if other in graph} for module, others in graph.items()}
    seen: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in seen:
            for other in graph[module] - {module}:
                visit(other, (*path, module))
            seen[module] = 1

    for module in graph:
        visit(module, ())


def test_a_wheel_has_every_package() -> None:
    """The packages are listed by name, since the folders of the repository have another name when installed."""
    import tomllib

    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"mvqkd"} | {
        "mvqkd." + name(path.parent).replace("/", ".") for path in FILES if path.name == "__init__.py"
    }
    assert set(settings["packages"]) == found
    assert all((path.parent / "__init__.py").is_file() for path in FILES)


def test_everything_is_loaded_under_one_name() -> None:
    assert not [module for module in sys.modules if module.split(".")[0] in ROOMS]
