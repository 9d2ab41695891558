"""The run configuration: its sections put together, and what they demand of one another.

Sections are the rooms of a run: `corpus`, `teacher`, `quantizer`, `extract`, `table`, `student`, `distill`,
`students`, `decode`, `cluster`, `storage`. Each stands next to the code that it configures, the driver's in
`run_sections` and `run_students`.
`run_file` reads them from YAML. Nothing here needs torch, Ray or Lhotse, so a wrong run file is told at once.
"""

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.kinds import AnyStudentConfig, OwnConfig
from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_sections import (
    ClusterConfig,
    ExtractConfig,
    QuantizerConfig,
    StorageConfig,
    TableConfig,
    TableOverrides,
)
from mvqkd.pipeline.run_students import (
    FolderName,
    Student,
    StudentOverrides,
    Students,
    merged_values,
    student_config,
)
from mvqkd.workers.corpus.config import CorpusConfig
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.recognize.settings import DecodeConfig
from mvqkd.workers.section import Section
from mvqkd.workers.teacher import TeacherConfig


class RunConfig(Section, strict=False):
    """One run: everything that `mvqkd` needs to know."""

    corpus: CorpusConfig
    teacher: TeacherConfig
    quantizer: QuantizerConfig = QuantizerConfig()
    extract: ExtractConfig = ExtractConfig()
    table: TableConfig = TableConfig()
    student: Student = StudentConfig()
    distill: DistillConfig = DistillConfig()
    students: Students | None = None
    tables: dict[FolderName, TableOverrides] = Field(default={})
    decode: DecodeConfig = DecodeConfig()
    cluster: ClusterConfig = ClusterConfig()
    storage: StorageConfig

    def of_table(self, name: str) -> "RunConfig":
        """This run as it would be if its one table were the one of `tables` that is called so."""
        changed = self.tables[name]
        teacher, extract = self.teacher, self.extract
        if changed.layer is not None:
            teacher = teacher.model_copy(update={"layer": changed.layer})
        if changed.search is not None:
            extract = extract.model_copy(update={"search": changed.search})
        table = self.table if changed.target is None else TableConfig(target=changed.target)
        quantizer = QuantizerConfig(**{**self.quantizer.model_dump(), **changed.quantizer})
        update = {"teacher": teacher, "extract": extract, "quantizer": quantizer, "table": table}
        return self.model_copy(update={**update, "tables": {}})

    def student_names(self) -> list[str]:
        """The students that a run trains, in order.

        Without a section `students` they are `baseline`, the same student without codes (unless
        `distill.baseline` is false), and `mvqkd` (unless `distill.loss_scale` is 0).
        """
        if self.students is not None:
            return list(self.students)
        if self.distill.loss_scale == 0:
            return ["baseline"]
        return ["baseline", "mvqkd"] if self.distill.baseline else ["mvqkd"]

    def default_student(self) -> str:
        """The student that is meant where none is named: `mvqkd`, or the only one.

        Raises:
            ConfigError: there are several and none is called `mvqkd`.
        """
        names = self.student_names()
        if "mvqkd" in names:
            return "mvqkd"
        if len(names) == 1:
            return names[0]
        raise ConfigError(f"which student? There are {', '.join(names)}; choose with --student NAME")

    def student_settings(self, name: str) -> tuple[AnyStudentConfig, DistillConfig]:
        """Sizes and training of one student.

        Raises:
            ConfigError: there is no student of this name.
        """
        if self.students is None:
            if name == "baseline":
                return self.student, self.distill.without_codes()
            if name == "mvqkd":
                return self.student, self.distill
        elif name in self.students:
            return self._merged(name, self.students[name])
        known = ["baseline", "mvqkd"] if self.students is None else list(self.students)
        raise ConfigError(
            f"no student {name!r}; there are {', '.join(known)}, and the section `students` of the run file names more"
        )

    def _merged(self, name: str, overrides: StudentOverrides) -> tuple[AnyStudentConfig, DistillConfig]:
        """Raises ValidationError with the place of each wrong key in the run file."""
        problems: list[InitErrorDetails] = []
        sections: dict[str, Any] = {}
        for section, check, values in (
            ("student", student_config, merged_values(self.student, overrides.student)),
            ("distill", DistillConfig.model_validate, {**self.distill.model_dump(), **overrides.distill}),
        ):
            try:
                sections[section] = check(values)
            except ValidationError as error:
                problems += [
                    InitErrorDetails(
                        type=problem["type"],
                        loc=("students", name, section, *problem["loc"]),
                        input=problem["input"],
                        ctx=problem.get("ctx", {}),
                    )
                    for problem in error.errors()
                ]
        if problems:
            raise ValidationError.from_exception_data("students", problems)
        return sections["student"], sections["distill"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.teacher.dtype == "float16" and self.teacher.device == "cpu":
            raise ValueError(
                "teacher.dtype float16 needs CUDA: use bfloat16 or float32, or another teacher.device"
            )
        if self.extract.batch_seconds != "auto":
            self._check_longest("extract", self.extract.batch_seconds)
        for name in self.tables:
            self._check_table(name)
        if self.students is None:
            self._check_student("", self.student, self.distill)
            return self
        for name, overrides in self.students.items():
            student, distill = self._merged(name, overrides)
            self._check_student(f"students.{name}: ", student, distill)
            if name == "baseline" and distill.loss_scale > 0:
                raise ValueError(
                    f"students.baseline: its distill.loss_scale is {distill.loss_scale}, but `baseline` is reported as "
                    "the student without codes; set students.baseline.distill.loss_scale to 0, or rename it"
                )
        return self

    def _check_table(self, name: str) -> None:
        try:
            self.of_table(name)
        except ValidationError as error:
            problems = [
                InitErrorDetails(
                    type=problem["type"],
                    loc=("tables", name, "quantizer", *problem["loc"]),
                    input=problem["input"],
                    ctx=problem.get("ctx", {}),
                )
                for problem in error.errors()
            ]
            raise ValidationError.from_exception_data("tables", problems) from error

    def _check_student(self, where: str, student: AnyStudentConfig, distill: DistillConfig) -> None:
        layers = {"distill.student_layer": distill.student_layer} if distill.loss_scale else {}
        layers |= {
            f"distill.targets.{name}.student_layer": t.student_layer for name, t in distill.targets.items()
        }
        for key, layer in layers.items():
            # How many layers one's own student has is not known before it is built.
            if not isinstance(student, OwnConfig) and layer > student.num_layers:
                raise ValueError(
                    f"{where}{key} {layer} is beyond the last layer of the student (student.num_layers "
                    f"{student.num_layers})"
                )
        if not isinstance(student, OwnConfig) and student.loss == "ctc" and distill.ctc_scale:
            raise ValueError(
                f"{where}distill.ctc_scale {distill.ctc_scale:g} is of a CTC loss beside a transducer's, but "
                "student.loss is ctc alone; set it to 0 there"
            )
        self._check_longest(f"{where}distill", distill.batch_seconds)

    def _check_longest(self, key: str, batch_seconds: float) -> None:
        longest = self.corpus.max_duration_s
        if batch_seconds < longest:
            raise ValueError(
                f"{key}.batch_seconds {batch_seconds} is less than one utterance may last "
                f"(corpus.max_duration_s {longest}): raise the first or lower the second"
            )
