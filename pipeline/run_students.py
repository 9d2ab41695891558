"""The sections `student` and `students` of a run file: sizes of any kind of student, checked key by key."""

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, make_dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.kinds import KINDS, AnyStudentConfig, EmformerConfig, OwnConfig, of_kind
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.section import KeysOf, Section


class _Checked(Section):
    """The keys of a plain dataclass, checked as strictly as those of any other section."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.__post_init__()  # type: ignore[attr-defined]  # of the dataclass beside this class
        return self


class _Conformer(_Checked, StudentConfig):  # type: ignore[misc]  # mypy does not see that sections are frozen
    pass


class _Emformer(_Checked, EmformerConfig):  # type: ignore[misc]  # as above
    pass


class _Own(_Checked, OwnConfig):  # type: ignore[misc]  # as above
    # Again, since pydantic sees no default that a dataclass makes by a function.
    options: dict[str, Any] = Field(default={})


class _AnyKind(Section, extra="ignore"):
    """Only which kind it is."""

    kind: Literal["conformer", "emformer", "own"] = "conformer"


_SECTIONS: Mapping[str, type[_Checked]] = {"conformer": _Conformer, "emformer": _Emformer, "own": _Own}


def section_of(values: Any) -> type[Section]:
    """The section that checks these values of a run file, by their `kind`. Raises ValidationError for one there is
    not."""
    kind = _AnyKind.model_validate(values).kind if isinstance(values, Mapping) else "conformer"
    return _SECTIONS[kind]


def student_config(value: Any) -> AnyStudentConfig:
    """The settings of a student, of values of a run file. Raises ValidationError for wrong ones."""
    if isinstance(value, AnyStudentConfig) and not isinstance(value, Section):
        return value
    section = section_of(value)
    if isinstance(value, Mapping):
        _check_not_of_another_kind(value, section)
    checked = section.model_validate(value).model_dump()
    return KINDS[checked["kind"]](**checked)


def _check_not_of_another_kind(values: Mapping[str, Any], section: type[Section]) -> None:
    """Raises ValidationError for keys that only other kinds have: to call them unknown would be no help."""
    kind = section.model_fields["kind"].default
    problems = [
        InitErrorDetails(
            type="value_error",
            loc=(key,),
            input=value,
            ctx={
                "error": ValueError(
                    f"is a key of student.kind {' and '.join(others)}, not of {kind}; remove it"
                )
            },
        )
        for key, value in values.items()
        if key not in section.model_fields
        and (others := [name for name, other in _SECTIONS.items() if key in other.model_fields])
    ]
    if problems:
        raise ValidationError.from_exception_data("student", problems)


def merged_values(base: AnyStudentConfig, changed: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a student that differs from another one in some keys, perhaps in its kind."""
    kind = changed.get("kind", base.kind)
    values = asdict(base) if kind == base.kind or kind not in KINDS else of_kind(base, kind)
    return {**values, **changed}


_every_key: dict[str, Any] = {item.name: item.type for kind in KINDS.values() for item in fields(kind)}
EveryStudentKey: type = make_dataclass("EveryStudentKey", [*(_every_key | {"kind": str}).items()])
"""The keys of all kinds, for the reader of YAML."""


class StudentOverrides(Section):
    """The keys of `student` and `distill` in which one student differs from these two sections."""

    student: Annotated[dict[str, Any], KeysOf(EveryStudentKey)] = Field(default={})
    distill: Annotated[dict[str, Any], KeysOf(DistillConfig)] = Field(default={})


def _at_least_one(students: dict[str, StudentOverrides]) -> dict[str, StudentOverrides]:
    if not students:
        raise ValueError("names no student; add one, or remove the section for the usual two")
    return students


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise ValueError("a name has letters, digits, - and _ only, since a folder is called so")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]
Students = Annotated[dict[FolderName, StudentOverrides], AfterValidator(_at_least_one)]
Student = Annotated[AnyStudentConfig, PlainValidator(student_config), KeysOf(EveryStudentKey)]
