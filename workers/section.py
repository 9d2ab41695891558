"""The base of every configuration section; a section stands next to the code that it configures."""

import os
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Immutable, no unknown keys, no silent conversion of text to numbers, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _SpeedOnly:
    """The mark of keys that change how fast the work goes, or on what it runs, but not what comes out."""


SPEED_ONLY = _SpeedOnly()
"""Stands where such a key is declared: `cache_mb: Annotated[int, SPEED_ONLY] = 1024`."""


class KeysOf:
    """Stands beside a mapping whose keys are some of those of a section: `Annotated[dict[str, Any], KeysOf(X)]`."""

    def __init__(self, section: type) -> None:
        self.section = section


def speed_only_keys(section: type[BaseModel]) -> set[str]:
    """Names of the keys of a section that are marked `SPEED_ONLY`."""
    return {
        name
        for name, field in section.model_fields.items()
        if any(isinstance(mark, _SpeedOnly) for mark in field.metadata)
    }


def identity_of(section: Any) -> dict[str, Any]:
    """What of a section decides the result: all but its `SPEED_ONLY` keys, as JSON values.

    Two runs whose identities are equal make the same thing, so one may use what the other made. A plain dataclass that
    is used as a section says it by its own `to_dict`, if it has one.
    """
    if isinstance(section, BaseModel):
        return section.model_dump(exclude=speed_only_keys(type(section)))
    assert is_dataclass(section)
    assert not isinstance(section, type)
    content: dict[str, Any] = section.to_dict() if hasattr(section, "to_dict") else asdict(section)
    return content


def _expanded(path: str) -> str:
    """The path with `~` and `~user` replaced by the home folder; urls and the rest stay as they are."""
    if not path.startswith("~"):
        return path
    full = os.path.expanduser(path)  # noqa: PTH111 (pathlib also drops ./ and slashes)
    if full == path:
        user = path.partition("/")[0]
        raise ValueError(
            f"{user} is no user's home folder on this machine; write ./{path} for a folder of that name"
        )
    return full


Text = Annotated[str, Field(min_length=1)]
"""A text that cannot be empty."""

PathText = Annotated[Text, AfterValidator(_expanded)]
"""A local path, in which `~` is the home folder, or a url."""

Seed = Annotated[int, Field(ge=-(2**40), le=2**40)]
"""A seed small enough for the sums that generators are seeded with."""
