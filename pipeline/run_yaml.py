"""YAML for run files: every value is read as the type of its key wants it, and nothing is turned into something else.

A key that is text takes what stands there, be it `0123`, `1e5`, `yes` or a date. Numbers are decimal, hexadecimal or
`1e-3`; what YAML 1.1 makes of `0123` (octal), `1:30` (sexagesimal) or a date stays text, which a number's key
refuses. Keys that come twice in one mapping are refused with both lines.
"""

import re
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel

from mvqkd.pipeline.errors import ConfigError
from mvqkd.workers.section import KeysOf

MAX_VALUES = 100_000
"""Values of a file, aliases followed; a run file has some hundred."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*|0x[0-9a-fA-F]{1,16})")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULL = ("", "~", "null", "Null", "NULL")
_TRUE = ("true", "True", "TRUE")
_FALSE = ("false", "False", "FALSE")
_YES = ("yes", "Yes", "YES", "on", "On", "ON")
_NO = ("no", "No", "NO", "off", "Off", "OFF")

_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the declaration of a key says of its values.

    Attributes:
        section: the section whose keys a mapping here has, or None.
        values: the kind of every value of a mapping whose keys are free names, or None.
        text: only text is a value (or nothing at all, where `optional`).
        boolean: only true and false are.
        optional: null is a value.
    """

    section: type | None = None
    values: "Kind | None" = None
    text: bool = False
    boolean: bool = False
    optional: bool = False


ANY = Kind()


def keys_of(section: type) -> dict[str, Kind]:
    """The keys of a section, or of a plain dataclass that is used as one, in order."""
    if issubclass(section, BaseModel):
        return {name: _kind(field.annotation, field.metadata) for name, field in section.model_fields.items()}
    assert is_dataclass(section)
    hints = get_type_hints(section, include_extras=True)
    return {field.name: _kind(hints[field.name], []) for field in fields(section)}


def _kind(annotation: Any, metadata: list[Any]) -> Kind:
    for mark in metadata:
        if isinstance(mark, KeysOf):
            return Kind(section=mark.section)
    members = _members(annotation)
    types = [member for member in members if member is not None]
    optional = len(types) < len(members)
    if (
        len(types) == 1
        and isinstance(types[0], type)
        and (issubclass(types[0], BaseModel) or is_dataclass(types[0]))
    ):
        return Kind(section=types[0], optional=optional)
    if len(types) == 1 and get_origin(types[0]) is dict:
        return Kind(values=_kind(get_args(types[0])[1], []), optional=optional)
    text = all(member is str or isinstance(member, str) for member in types)
    return Kind(text=text, boolean=types == [bool], optional=optional)


def _members(annotation: Any) -> list[Any]:
    """Types and literal values of a union; None is a member like others."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    if origin is Literal:
        return list(get_args(annotation))
    return [None] if annotation is type(None) else [annotation]


class _Loader(yaml.SafeLoader):
    """Composes nodes; no plain scalar is resolved, except `<<` (so that its quoted form is no merge)."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own attribute)


_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"^<<$"), ["<"])


def read_yaml(text: str, kind: Kind) -> Any:
    """The value of a text of YAML.

    Raises:
        ConfigError: not YAML, or keys come twice; the message starts with the line where there is one.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is None:
            return None
        _check_nodes(node)
        return _Reader().value(node, kind)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError("not valid YAML for a run file: it is nested too deep") from error


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _check_nodes(root: yaml.Node) -> None:
    """Refuse, at every depth, keys that come twice, keys that are no names, and tags of other programs."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise ConfigError(f"line {_line(key)}: a key has to be a name")
                if key.value in lines:
                    raise ConfigError(
                        f"line {_line(key)}: {key.value!r} stands here again, the first time in line "
                        f"{lines[key.value]}; put the two together"
                    )
                lines[key.value] = _line(key)
                todo.append(value)
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value
        known = ("str", "int", "float", "bool", "null", "map", "seq", "merge")
        if node.tag.removeprefix(_TAG) not in known:
            raise ConfigError(f"line {_line(node)}: the tag {node.tag} is not known here; remove it")


class _Reader:
    """Turns nodes into values; counts them, since aliases of aliases grow without bound."""

    def __init__(self) -> None:
        self._count = 0

    def value(self, node: yaml.Node, kind: Kind) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise ConfigError(f"line {_line(node)}: more than {MAX_VALUES} values; use fewer aliases")
        if isinstance(node, yaml.MappingNode):
            known = keys_of(kind.section) if kind.section is not None else {}
            return {
                key: self.value(value, kind.values or known.get(key, ANY))
                for key, value in self._items(node).items()
            }
        if isinstance(node, yaml.SequenceNode):
            return [self.value(part, ANY) for part in node.value]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, kind)

    def _items(self, node: yaml.MappingNode, within: tuple[int, ...] = ()) -> dict[str, yaml.Node]:
        """The mapping's own keys, and below them those of the mappings that it merges (`<<`)."""
        if id(node) in within:
            raise ConfigError(f"line {_line(node)}: a mapping that merges itself")
        self._count += 1
        merged: dict[str, yaml.Node] = {}
        own: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag != f"{_TAG}merge":
                own[key.value] = value
                continue
            # Of several, the first one counts most.
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in reversed(parts):
                if not isinstance(part, yaml.MappingNode):
                    raise ConfigError(f"line {_line(part)}: << takes mappings only")
                merged |= self._items(part, (*within, id(node)))
        return merged | own

    def _scalar(self, node: yaml.ScalarNode, kind: Kind) -> Any:
        tag = node.tag.removeprefix(_TAG)
        plain = node.style is None and tag in ("str", "merge")
        # A tag that stands there, as in !!int "3", is no less plain than the value.
        if tag in ("int", "float", "bool", "null"):
            return resolve(node.value, Kind(boolean=tag == "bool"))
        return resolve(node.value, kind) if plain else node.value


def resolve(text: str, kind: Kind) -> Any:
    """The value of unquoted text where the kind of its key is known."""
    if text in _NULL:
        return None
    if kind.text:
        return text
    if text in _TRUE or (kind.boolean and text in _YES):
        return True
    if text in _FALSE or (kind.boolean and text in _NO):
        return False
    try:
        if _INT.fullmatch(text):
            return int(text, 16 if "x" in text else 10)
        if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
            return float(text)
    except ValueError:
        return text  # thousands of digits, which Python does not read and no key takes
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text
