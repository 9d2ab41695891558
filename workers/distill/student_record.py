"""A student as it is kept: `student.safetensors` and, with all that is known of it, `student.json`.

The one place that writes and reads them. The record alone is read without building the model, and without torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from mvqkd.storage.artifacts import load_artifact, load_metadata, save_artifact
from mvqkd.storage.errors import ArtifactError
from mvqkd.storage.location import Location

if TYPE_CHECKING:
    from torch import Tensor

    from mvqkd.models.students.base import Student
    from mvqkd.models.students.units import Units

NAME = "student"


@dataclass(frozen=True, kw_only=True)
class StudentRecord:
    """All that is known of a trained student.

    Attributes:
        student: sizes, as `kinds.config_of` takes them.
        distill: the training's settings, as `DistillConfig` takes them.
        units: `kind` and `data` of its output units.
        contract: of the index table that it was trained from.
        sample_rate_hz: of the audio that it takes.
        digest: names the training.
        steps: optimizer steps.
        left_out: utterances that could not be trained on, and why.
        valid_wer: of the held-out part, a fraction; None without one.
        untrained: names of the weights that the training did not reach, since it was on codes alone.
    """

    student: dict[str, Any]
    distill: dict[str, Any]
    units: dict[str, str]
    contract: dict[str, Any]
    sample_rate_hz: int
    digest: str
    steps: int
    left_out: dict[str, str]
    valid_wer: float | None = None
    untrained: tuple[str, ...] = ()


def save_student(location: Location, state: Mapping[str, "Tensor"], record: StudentRecord) -> None:
    """Store a student's weights, which are on the CPU, and what is known of it."""
    save_artifact(location, NAME, {name: tensor.numpy() for name, tensor in state.items()}, asdict(record))


def load_record(location: Location) -> StudentRecord:
    """What is known of the stored student.

    Raises:
        ArtifactError: there is none, or its record is damaged.
    """
    return _record(location, load_metadata(location, NAME))


def verified_record(location: Location) -> StudentRecord:
    """As `load_record`, after a look at the weights, so that damaged ones show. Needs no torch either.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    return _record(location, load_artifact(location, NAME)[1])


def load_student(location: Location) -> tuple["Student", "Units", StudentRecord]:
    """A trained student (CPU, eval mode), its units and what is known of it.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    import torch

    from mvqkd.models.students.build import build_student
    from mvqkd.models.students.kinds import config_of
    from mvqkd.models.students.units import load_units

    arrays, metadata = load_artifact(location, NAME)
    record = _record(location, metadata)
    units = load_units(record.units["kind"], record.units["data"])
    student = build_student(config_of(record.student), len(units), ctc_scale=record.distill["ctc_scale"])
    student.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return student.eval(), units, record


def _record(location: Location, metadata: Mapping[str, Any]) -> StudentRecord:
    known = {item.name for item in fields(StudentRecord)}
    try:
        return StudentRecord(**{name: value for name, value in metadata.items() if name in known})
    except TypeError as error:
        raise ArtifactError(
            f"{location.full_url(NAME)}.json: not the record of a student ({error}); train it again"
        ) from error
