"""A trained student, by its folder or by the run file that trained it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_file import load_config, load_storage_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.storage.errors import ArtifactError
from mvqkd.storage.location import Location, open_location
from mvqkd.workers.recognize.settings import DecodeConfig

if TYPE_CHECKING:
    from mvqkd.models.students.base import Student
    from mvqkd.models.students.units import Units


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Where a trained student lies, and how its run file has it searched."""

    location: Location
    decode: DecodeConfig

    def load(self) -> "tuple[Student, Units]":
        """The student (CPU, eval mode) and its units.

        Raises:
            StageError: there is none, or none that recognizes speech.
        """
        from mvqkd.workers.distill.student_record import load_student

        try:
            student, units, record = load_student(self.location)
        except ArtifactError as error:
            raise StageError(
                f"{error}; name the folder of a student that `mvqkd distill` trained, or its run file"
            ) from error
        if record.untrained:
            raise StageError(
                f"{self.location.url}: was trained on codes alone and recognizes nothing; start another run from it by "
                "distill.init, with transcripts"
            )
        return student, units


def find_trained(where: str, name: str | None, overrides: Sequence[str]) -> Trained:
    """The student that is meant.

    Args:
        where: its folder, local or `s3://`, or a run file.
        name: of a student of the run file.
        overrides: of the run file; of a folder, those of `storage` alone.

    Raises:
        ConfigError: the run file or an override is wrong, or there is no student of this name.
        StageError: a folder is named and a student of a run file too.
    """
    if where.endswith((".yaml", ".yml")) or (not where.startswith("s3://") and Path(where).is_file()):
        config = load_config(where, overrides)
        name = config.default_student() if name is None else name
        config.student_settings(name)
        return Trained(location=Run(config).student(name), decode=config.decode)
    if name is not None:
        raise StageError(
            f"--student {name} is of a run file, but {where} is a folder; name {where}/{name} or the file"
        )
    options = load_storage_config(where, overrides).options
    return Trained(location=open_location(where, options=options), decode=DecodeConfig())
