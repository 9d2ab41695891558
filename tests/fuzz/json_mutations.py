"""JSON values of every kind, and changes to a JSON value or to its line."""

import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([10**20, -(10**20), 10**400, 2**31, 2**63, 16000, 8000, 0.1, -0.0, 1e-12, 1e308, -1e308]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.text(alphabet=st.characters(codec=None), max_size=8),
    st.sampled_from(
        [
            *(
                "",
                "a/../b",
                "~",
                "/",
                "\ud800",
                "\udc00x",
                "\0",
                "a\tb\nc",
                "\u2028",
                "u1",
                "MonoCut",
                "MultiCut",
            ),
            *(
                "memory",
                "url",
                "file",
                "shar",
                "Speed",
                "Compress",
                "opus",
                "audio/u0.wav",
                "x.wav#bytes=0-9",
            ),
            *("0.5", "NaN", "\U0001f600"),
        ]
    ),
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [
    "type",
    "id",
    "start",
    "custom",
    "features",
    "transforms",
    "sources",
    "video",
    "alignment",
    "text",
    "width",
]


def mutate(value: Any, draw: Callable[[Any], Any]) -> Any:
    """Change one place in a JSON value; every place is as likely as any other."""
    places = list(_places(value))
    # Drawn by a hash, because Hypothesis draws what comes first more often.
    place = places[zlib.crc32(str(draw(st.integers(0, 2**32))).encode()) % len(places)] if places else None
    if place is None:
        return _changed(value, draw)
    parent, key = place
    if draw(st.integers(0, 7)) == 0:
        del parent[key]
    else:
        parent[key] = _changed(parent[key], draw)
    return value


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every container in the value, with every key of it."""
    if isinstance(value, dict | list) and depth < 20:
        for key in sorted(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key], depth + 1)


def _changed(value: Any, draw: Callable[[Any], Any]) -> Any:
    how = draw(st.integers(0, 11))
    if how == 0:
        return [value]
    if how == 1:
        for level in range(draw(st.sampled_from([5, 30, 60, 250]))):
            value = {"a": value} if level % 2 else [value]
        return value
    if how == 2 and isinstance(value, dict):
        return {**value, draw(st.sampled_from(NAMES)): draw(VALUES)}
    if how == 2 and isinstance(value, list):
        return value + value
    if how in (3, 4) and type(value) in (int, float) and abs(value) < 2**1000:
        return value * draw(st.sampled_from([-1, 0, 1.0001, 1.001, 1.02, 2, 1e9, 1e300]))
    if how == 5:
        return str(value)
    return draw(ATOMS if how % 2 else VALUES)


def spoil(line: str, draw: Callable[[Any], Any]) -> str:
    """A line that was torn or written over; never more lines than one."""
    at = draw(st.integers(0, len(line)))
    how = draw(st.integers(0, 3))
    if how == 0:
        return line[:at] or "{"
    junk = draw(
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=6)
    )
    return line[:at] + junk + line[at if how == 1 else at + len(junk) :]
