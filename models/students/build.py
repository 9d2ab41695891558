"""The model of a student, of its settings. One's own student is imported here, and nowhere else."""

import importlib
from typing import Any

from mvqkd.models.students.base import Student
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.conformer import ConformerEncoder
from mvqkd.models.students.ctc import EncodedCtc
from mvqkd.models.students.emformer import EmformerEncoder
from mvqkd.models.students.encoded import Encoder
from mvqkd.models.students.kinds import AnyStudentConfig, OwnConfig
from mvqkd.models.students.transducer import ConformerTransducer, EmformerTransducer


def build_student(config: AnyStudentConfig, num_units: int, *, ctc_scale: float = 0.0) -> Student:
    """A student with new weights.

    Args:
        config: its kind and sizes.
        num_units: different units, blank (0) among them.
        ctc_scale: factor of an auxiliary CTC loss beside that of a transducer; others have none.

    Raises:
        ValueError: one's own student cannot be imported or built, or is none.
    """
    if isinstance(config, OwnConfig):
        return _own(config, num_units)
    if config.loss == "ctc":
        encoder: Encoder = (
            ConformerEncoder(config) if isinstance(config, StudentConfig) else EmformerEncoder(config)
        )
        return EncodedCtc(encoder, config, num_units)
    if isinstance(config, StudentConfig):
        return ConformerTransducer(config, num_units, ctc_scale=ctc_scale)
    return EmformerTransducer(config, num_units, ctc_scale=ctc_scale)


def _own(config: OwnConfig, num_units: int) -> Student:
    where = f"student.import_path {config.import_path}"
    module_name, _, path = config.import_path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{where}: {error}; install the package where the training runs, or put its folder on PYTHONPATH"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{where}: {module_name} has no {path}; name a class or a function of it")
        found = getattr(found, name)
    try:
        student = found(num_units, **config.options)
    except TypeError as error:
        raise ValueError(f"{where}, with student.options {sorted(config.options)}: {error}") from error
    if not isinstance(student, Student):
        raise ValueError(
            f"{where}: gives a {type(student).__name__}, which is no mvqkd.models.students.base.Student; wrap it in one"
        )
    return student
