"""Reading a run file: YAML, overrides of the command line, and errors that name the key."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_config import RunConfig
from mvqkd.pipeline.run_sections import StorageConfig
from mvqkd.pipeline.run_yaml import ANY, Kind, keys_of, read_yaml
from mvqkd.workers.section import Section

_Model = TypeVar("_Model", bound=Section)

LARGEST_FILE = 1 << 20
"""Bytes of a run file; more are some other file, perhaps one without end."""
LONGEST_SHOWN = 80
"""Characters of a wrong value that a message repeats."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply `a.b=c` overrides.

    A key that is text takes the override as it is; values of other keys are YAML.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; all problems at once.
    """
    try:
        path = Path(path).expanduser()
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such run file; `mvqkd init` writes one, configs/ holds examples"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML in UTF-8: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # no such home folder; a NUL in the name
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({problem}); name a run file") from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path}: longer than {LARGEST_FILE >> 20} MiB, so it is no run file; name one")
    return config_from_text(text, path, overrides)


def config_from_text(text: str, name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """What a run file of this text says; `name` stands in messages. Raises ConfigError as `load_config` does."""
    try:
        tree = read_yaml(text, Kind(section=RunConfig))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: a run file is a mapping of sections, see configs/demo.yaml")
    return _checked(RunConfig, tree, overrides, f"{name}: the run configuration is wrong")


def load_storage_config(root: str, overrides: Sequence[str] = ()) -> StorageConfig:
    """The storage section for a place named on the command line.

    Raises:
        ConfigError: an override is of another section, or wrong.
    """
    problem = "only storage.endpoint_url and storage.region can be set here"
    return _checked(_StorageOnly, {"storage": {"root": root}}, overrides, problem).storage


class _StorageOnly(Section):
    storage: StorageConfig


def _checked(model: type[_Model], tree: dict[str, Any], overrides: Sequence[str], what: str) -> _Model:
    for override in overrides:
        _apply_override(tree, override, model)
    # A section all of whose keys are commented out is as good as none.
    known = keys_of(model)
    tree = {
        key: {} if value is None and key in known and known[key].section is not None else value
        for key, value in tree.items()
    }
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem, model)}" for problem in error.errors())
        raise ConfigError(f"{what}:\n{problems}") from error


def _apply_override(tree: dict[str, Any], override: str, model: type[Section]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: write it as section.key=value")
    *sections, last = key.split(".")
    node, kind = tree, Kind(section=model)
    for section in sections:
        kind = _kind_below(kind, section)
        if node.get(section) is None:
            node[section] = {}
        node = node[section]
        if not isinstance(node, dict) or kind.text:
            raise ConfigError(f"--set {override}: {section} is not a section")
    try:
        node[last] = _override_value(text, _kind_below(kind, last))
    except ConfigError as error:
        raise ConfigError(f"--set {override}: the value is {error}") from error


def _override_value(text: str, kind: Kind) -> Any:
    if not kind.text:
        return read_yaml(text, kind)
    if text in ("", "null"):
        return None
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    # Quotes around the whole are YAML's, which earlier versions needed.
    return read_yaml(text, kind) if quoted else text


def _kind_below(kind: Kind, key: str) -> Kind:
    if kind.section is not None:
        return keys_of(kind.section).get(key, ANY)
    return kind.values or ANY


def _explain(problem: Any, model: type[Section]) -> str:
    """One line for one pydantic error: the key's path, what is wrong, what to do."""
    keys = _keys_on_the_way(problem["loc"], model)
    path = ".".join(keys)
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        known = _known_keys(keys[:-1], model)
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if kind == "missing":
        return f"{path}: is missing; add it to the run file or pass --set {path}=..."
    if kind == "value_error":
        return f"{path or 'run'}: {message.removeprefix('Value error, ')}"
    if kind in ("model_type", "dict_type"):
        message = "has keys and values below it"
    shown = repr(problem["input"])
    if len(shown) > LONGEST_SHOWN:
        shown = f"{shown[:LONGEST_SHOWN]}..."
    return f"{path}: {message[0].lower()}{message[1:]}, not {shown}"


def _keys_on_the_way(location: Sequence[Any], model: type[Section]) -> list[str]:
    """The keys of a place; the names of branches of a union, which pydantic adds, are no keys."""
    kind, keys = Kind(section=model), []
    for part in map(str, location):
        if part == "[key]" or (kind.section is None and kind.values is None):
            break
        keys.append(part)
        kind = _kind_below(kind, part)
    return keys


def _known_keys(keys: Sequence[str], model: type[Section]) -> list[str]:
    kind = Kind(section=model)
    for key in keys:
        kind = _kind_below(kind, key)
    return list(keys_of(kind.section)) if kind.section is not None else []
