"""What a table of embeddings has in the place of a quantizer: `teacher.json`, which says what embeddings they are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mvqkd.storage.artifacts import read_json, write_json
from mvqkd.storage.contract import EMBEDDINGS, TableContract
from mvqkd.storage.errors import ArtifactError, ObjectMissingError
from mvqkd.storage.location import Location

NAME = "teacher.json"


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """A teacher as it was loaded once.

    Attributes:
        teacher: `TeacherInfo`, as a mapping.
        settings: section `teacher` of the run, as far as it decides the embeddings.
        batch_seconds: how large a batch should be on the device that it was loaded on; None where that is not known.
    """

    teacher: dict[str, Any]
    settings: dict[str, Any]
    batch_seconds: float | None

    @property
    def dim(self) -> int:
        """Numbers of an embedding."""
        return int(self.teacher["dim"])

    def contract(self, *, search: str) -> TableContract:  # as of `QuantizerRecord`
        """The contract of a table of these embeddings; nothing is searched for."""
        teacher = self.teacher
        return TableContract(
            teacher_fingerprint=teacher["fingerprint"],
            teacher_name=teacher["name"],
            layer=teacher["layer"],
            frame_rate_hz=teacher["frame_rate_hz"],
            frame_offset_s=teacher["frame_offset_s"],
            sample_rate_hz=teacher["sample_rate_hz"],
            payload=EMBEDDINGS,
            dim=teacher["dim"],
        )


def save_teacher(location: Location, record: TeacherRecord) -> None:
    """Store the record."""
    write_json(location, NAME, asdict(record))


def load_teacher_record(location: Location) -> TeacherRecord:
    """The stored record.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    where = location.full_url(NAME)
    try:
        content: Mapping[str, Any] = read_json(location, NAME)
    except ObjectMissingError as error:
        raise ArtifactError(f"{where}: there is no such record of a teacher") from error
    try:
        record = TeacherRecord(**content)
        record.contract(search="")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: not the record of a teacher ({error}); delete it") from error
    return record
