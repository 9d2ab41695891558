"""The kinds of students that a run file can ask for, as plain data: nothing here is built or imported.

`build.py` makes the models of them, where a training or a recognition runs.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from mvqkd.models.students.config import (
    MEL_FRAMES_PER_S,
    SUBSAMPLING,
    EncoderConfig,
    StudentConfig,
    check_units,
)

FRAME_MS = 1000 * SUBSAMPLING // MEL_FRAMES_PER_S
"""Of an encoder of ours."""
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, kw_only=True)
class EmformerConfig(EncoderConfig):
    """Size of an Emformer (Shi et al., arXiv 2010.10759), which recognizes while it hears.

    It works through the audio in segments. A frame sees its own segment, `left_context_ms` before it and
    `right_context_ms` after it, and, where `memory_segments` is above 0, a vector for each of so many segments before.
    Times are multiples of the 40 ms of a frame.

    Raises:
        ValueError: as `EncoderConfig`.
    """

    kind: Literal["emformer"] = "emformer"
    segment_ms: int = 640
    left_context_ms: int = 1280
    right_context_ms: int = 160
    memory_segments: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features != "log_mel":
            raise ValueError(
                f"features {self.features}: an emformer hears log_mel, with a mean that runs along; only a conformer "
                "is trained on fbank"
            )
        for name, least in (("segment_ms", 1), ("left_context_ms", 0), ("right_context_ms", 0)):
            value = getattr(self, name)
            if value % FRAME_MS or value < least:
                nearest = max(least, round(value / FRAME_MS)) * FRAME_MS
                raise ValueError(
                    f"{name} {value} is not a multiple of the {FRAME_MS} ms of a frame"
                    f"{f' from {FRAME_MS}' if least else ''}; take {nearest}"
                )
        if self.memory_segments < 0:
            raise ValueError(f"memory_segments must be at least 0, not {self.memory_segments}")


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """A student of one's own: what builds it, and with which options.

    `import_path` is `package.module:name`. What it names, a class or a function, is called with the number of units
    and with `options` by name, and returns a module as `base.py` describes it. `units` and `vocab_size` as for ours.

    Raises:
        ValueError: no import path, options whose names are none, or units that there are not.
    """

    kind: Literal["own"] = "own"
    import_path: str
    options: dict[str, Any] = field(default_factory=dict)
    units: str = "char"
    vocab_size: int = 500

    # Read by pydantic when a run file is checked; plain data, so pydantic is not needed here.
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    def __post_init__(self) -> None:
        if not _IMPORT_PATH.fullmatch(self.import_path):
            raise ValueError(
                f"import_path {self.import_path!r} is none; write it as package.module:Name, "
                "such as my_pkg.students:Zipformer"
            )
        wrong = [name for name in self.options if not name.isidentifier()]
        if wrong:
            raise ValueError(
                f"options {wrong} are no names of arguments; call them as {self.import_path} does"
            )
        check_units(self.units, self.vocab_size)

    def to_dict(self) -> dict[str, Any]:
        """For records and digests."""
        return asdict(self)


AnyStudentConfig = StudentConfig | EmformerConfig | OwnConfig
KINDS: dict[str, type[AnyStudentConfig]] = {
    "conformer": StudentConfig,
    "emformer": EmformerConfig,
    "own": OwnConfig,
}


def config_of(content: Mapping[str, Any]) -> AnyStudentConfig:
    """The settings that `to_dict` wrote, by any version: keys that are not there had their defaults.

    Raises:
        ValueError: a kind that this version does not know, or keys of another one.
    """
    kind = content.get("kind", "conformer")
    if kind not in KINDS:
        raise ValueError(f"a student of kind {kind!r}; this version knows {', '.join(KINDS)}")
    try:
        return KINDS[kind](**content)
    except TypeError as error:
        raise ValueError(f"no settings of a student of kind {kind}: {error}") from error


def of_kind(config: AnyStudentConfig, kind: str) -> dict[str, Any]:
    """The settings of a student that one of another kind has too, to begin from."""
    known = {item.name for item in fields(KINDS[kind])} - {"kind"}
    return {name: value for name, value in asdict(config).items() if name in known} | {"kind": kind}
