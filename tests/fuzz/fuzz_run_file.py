"""Random run files and overrides: each is refused with its place named, or read as what it says; never a traceback.

A random file is a tree of real and mistyped keys with values that YAML is known to change, then bytes of it are
changed. What was read is compared with the file's own scalars, which a second reader (PyYAML's BaseLoader) gives.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_config import RunConfig
from mvqkd.pipeline.run_file import config_from_text, load_config
from mvqkd.pipeline.run_yaml import Kind, keys_of

_WORDS = (
    "0123 1e5 12e4567 1234567 yes no on off true False ~ null NULL '' .inf -.inf .nan 1:30 1:30.5 2024-01-01 "
    "0x1F 0o17 0b1 1_000 _1 1__0 0 -1 1e400 -0.0 +3 3. .5 1e-3 1.5e+3 '8' \"8\" 'null' ~nobody-here/x ~/x ./~x "
    "a#b # s3://b/c [] {} [[[]]] | >- << = @ % *a *b char cuts auto none bfloat16 float16 cpu Tür 日本"
)
_LINES = """a #b\n[1, 2]\n{a: 1}\n{a: 1, a: 2}\n&a 3\n&r [*r]\n? x\n- x\n!!int 3\n!!str 3\n!!float 'x'\n!x y
!!python/object:os.system x\n!!binary aGk=\n"\\ud800"\n"a\\0b"\n"""
_LONG = ("9" * 30, "9" * 5000, "0x" + "f" * 5000, "1" + "0" * 400)
SCALARS = (*_WORDS.split(" "), *_LINES.split("\n"), *_LONG, "\u2028", "\x85", "\ufeff", "\x00")
BASE = {"corpus": {"root": "data"}, "teacher": {"path": "teacher"}, "storage": {"root": "runs/x"}}
SECTIONS = keys_of(RunConfig)
# What can be right: for text anything on one line, for switches and numbers all their spellings.
_TEXT_WORDS = "0123 1e5 12e4567 1234567 yes off true 1:30 2024-01-01 0x1F 1_000 .inf = 'null' \"8\" ~/x ./~x a#b s3://b/c"
TEXTS = (*_TEXT_WORDS.split(" "), "a b", "'a #b'", "char", "cuts", "none", "bfloat16", "Tür", "null", "~")
SWITCHES = ("true", "False", "yes", "no", "on", "OFF")
_NUMBER_WORDS = "1 2 3 4 8 16 64 256 1_000 0x1F +3 200 30.5 0.25 1e-3 1.5e+2 null auto"
NUMBERS = tuple(_NUMBER_WORDS.split(" "))
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
_PIECES = "\t|\n|: |- |[|{|}|]|#|&a |*a|<<: *a\n|'|\"|!|\x00|\ufeff"
PIECES = _PIECES.split("|")


def _names(section: str) -> list[str]:
    kind = SECTIONS[section]
    return list(keys_of(kind.section)) if kind.section is not None else ["mvqkd", "baseline", "a b", "x-1"]


def _kind_of(key: str) -> Kind:
    kind = Kind(section=RunConfig)
    for part in key.split("."):
        kind = keys_of(kind.section).get(part, Kind()) if kind.section is not None else kind.values or Kind()
    return kind


@st.composite
def scalars(draw: Any, key: str) -> str:
    """A value for the key, mostly of the right kind."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(SCALARS) | st.text(max_size=12))
    kind = _kind_of(key)
    return draw(st.sampled_from(TEXTS if kind.text else SWITCHES if kind.boolean else NUMBERS))


@st.composite
def overrides(draw: Any) -> str:
    """What comes after `--set`."""
    key = draw(keys())
    return f"{key}={draw(scalars(key))}"


sections = st.sampled_from(list(SECTIONS))


@st.composite
def keys(draw: Any) -> str:
    """`section.key`, mostly one that exists."""
    section = draw(sections)
    name = draw(st.sampled_from(_names(section)))
    if section == "students":
        inner = draw(st.sampled_from(("student", "distill")))
        name = f"{name}.{inner}.{draw(st.sampled_from(_names(inner)))}"
    return draw(
        st.sampled_from(
            (f"{section}.{name}",) * 60 + (section, f"{section}.{name}x", f"{section}.{name}.x", "", ".")
        )
    )


@st.composite
def texts(draw: Any) -> str:
    """A run file as text: a tree of keys, written in block style, then perhaps changed."""
    tree: dict[str, Any] = {name: dict(content) for name, content in BASE.items()}
    for key in draw(st.lists(keys(), max_size=4)):
        *outer, last = key.split(".")
        node = tree
        for part in outer:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                break
        else:
            node[last] = draw(scalars(key))
    text = _written(tree, "")
    for _ in range(draw(st.sampled_from((0,) * 9 + (1, 1, 2)))):
        text = _changed(draw, text)
    return text


def _written(tree: dict[str, Any], indent: str) -> str:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{_written(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {value}\n")
    return "".join(lines)


def _changed(draw: Any, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    lines = text.splitlines(keepends=True)
    kind = draw(st.integers(0, 6))
    if kind == 0 and lines:  # a line, or a whole section, twice
        first = draw(st.integers(0, len(lines) - 1))
        return text + "".join(lines[first : first + draw(st.integers(1, 3))])
    if kind == 1:
        return text[:at] + draw(st.sampled_from(PIECES)) + text[at:]
    if kind == 2:
        return text[:at] + text[at + draw(st.integers(1, 5)) :]
    if kind == 3:
        return text + draw(
            st.sampled_from(
                (BOMB, f"x: {'[' * 1000}", f"x: {'{a: ' * 500}", "x: &x {<<: *x}\n", "? [a]\n: b\n")
            )
        )
    if kind == 4:  # a mapping named, repeated and merged
        return text.replace("corpus:\n", "corpus: &a\n", 1) + draw(
            st.sampled_from(
                ("distill:\n  <<: *a\n", "table: *a\n", "student: {<<: [*a, *a]}\n", "extract: {<<: 3}\n")
            )
        )
    if kind == 5:
        return draw(st.text(max_size=40))
    return text[:at] + draw(st.text(min_size=1, max_size=3)) + text[at:]


def check_text(text: str, overrides: Sequence[str]) -> None:
    """One case: the text as a file, and some overrides."""
    try:
        config = config_from_text(text, "run.yaml", overrides)
    except ConfigError as error:
        message = str(error)
        assert message.startswith(("run.yaml: ", "--set ")), message
        assert len(message) < 100_000
        return
    root = yaml.compose(text, Loader=yaml.BaseLoader)
    said = {override.partition("=")[0] for override in overrides}
    _compare(root, config, "", said)
    for key in said:
        last = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == key][-1]
        _compare_override(config, key, last, said)


def _compare(node: yaml.Node, value: Any, path: str, said: set[str]) -> None:
    """The value is what the node says; places that an override said something about are left out."""
    if any(path == key or path.startswith(f"{key}.") for key in said):
        return
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        assert len(set(names)) == len(names), f"{path}: a key twice"
        for key, below in node.value:
            if key.value == "<<":
                continue
            known = value.get(key.value) if isinstance(value, dict) else getattr(value, key.value, None)
            _compare(below, known, f"{path}.{key.value}".lstrip("."), said)
    elif isinstance(node, yaml.ScalarNode):
        plain = node.style is None and node.value in ("", "~", "null", "Null", "NULL")
        # A section without keys has its defaults.
        assert (plain and (value is None or path in SECTIONS)) or _says(node.value, value), (
            f"{path}: {node.value!r}, {value!r}"
        )
    else:
        raise AssertionError(f"{path}: a list was taken")


def _says(text: str, value: Any) -> bool:
    if isinstance(value, str):
        return value in (text, os.path.expanduser(text))  # noqa: PTH111 (of paths only)
    if isinstance(value, bool):
        return text.lower() in (("true", "yes", "on") if value else ("false", "no", "off"))
    if isinstance(value, int):
        return int(text, 16 if "x" in text else 10) == value
    return isinstance(value, float) and (float(int(text, 16)) if "x" in text else float(text)) == value


def _compare_override(config: RunConfig, key: str, text: str, said: set[str]) -> None:
    if any(other != key and (other.startswith(key) or key.startswith(other)) for other in said):
        return
    value: Any = config
    kind = Kind(section=RunConfig)
    for part in key.split("."):
        kind = keys_of(kind.section)[part] if kind.section is not None else kind.values
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    if kind.text and text not in ("", "null") and text[:1] not in "'\"":
        assert _says(text, value), f"--set {key}={text!r} became {value!r}"
    elif isinstance(value, bool | int | float) and "#" not in text and not set(text) & set("!&'\""):
        assert _says(text.strip(), value), f"--set {key}={text!r} became {value!r}"


def check_bytes(content: bytes, folder: Path) -> None:
    """One case: any bytes as a file."""
    file = folder / "run.yaml"
    file.write_bytes(content)
    try:
        load_config(file)
    except ConfigError as error:
        assert str(error).startswith(str(file)), str(error)


def run(cases: int, seed_: int) -> None:
    """Try so many random files and overrides. Raises AssertionError with the smallest case that fails."""
    options = settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )

    @seed(seed_)
    @options
    @given(texts(), st.lists(overrides(), max_size=2))
    def texts_and_overrides(text: str, given_overrides: list[str]) -> None:
        check_text(text, given_overrides)

    @seed(seed_)
    @settings(options, max_examples=max(1, cases // 10))
    @given(texts(), st.binary(max_size=4), st.integers(0, 400))
    def any_bytes(text: str, inserted: bytes, at: int) -> None:
        content = text.encode("utf-8", errors="surrogatepass")
        check_bytes(content[:at] + inserted + content[at:], Path(folder))

    texts_and_overrides()
    with tempfile.TemporaryDirectory() as folder:
        any_bytes()
