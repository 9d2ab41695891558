"""A run: its configuration, where each of its results lies, and its report, one file for each stage."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from mvqkd.pipeline.run_config import RunConfig
from mvqkd.storage.artifacts import read_json, write_json
from mvqkd.storage.errors import ArtifactError, ObjectMissingError
from mvqkd.storage.location import Location, open_location
from mvqkd.workers.corpus.paths import full_root

REPORT = "report.json"
Part = Literal["train", "test"]


class Run:
    """Folders below `storage.root`: `plan/train`, `plan/test`, `quantizer`, `table`, `students/<name>`, `reports`.

    Args:
        table_name: of `tables` in the run file, whose quantizer, table and reports lie in `tables/<name>`; the plan is
            the run's.
    """

    def __init__(self, config: RunConfig, *, table_name: str | None = None) -> None:
        self.config = config if table_name is None else config.of_table(table_name)
        self.root = open_location(config.storage.root, options=config.storage.options)
        self.table_name = table_name
        self._of_table = self.root if table_name is None else self.root.join("tables", table_name)
        self.reports = Reports(root=self._of_table)

    def more_tables(self) -> list["Run"]:
        """The same run with each of `tables` in the place of its table."""
        return [Run(self.config, table_name=name) for name in self.config.tables]

    @property
    def name(self) -> str:
        """The last part of `storage.root`: what dashboards call the run."""
        return self.config.storage.root.rstrip("/").rpartition("/")[2]

    def plan(self, part: Part) -> Location:
        """Folder of a shard plan."""
        return self.root.join("plan", part)

    @property
    def corpus_root(self) -> str | None:
        """`corpus.root` as processes in other working directories need it."""
        return full_root(self.config.corpus.root)

    @property
    def quantizer(self) -> Location:
        """Folder of the quantizer artifact."""
        return self._of_table.join("quantizer")

    @property
    def table(self) -> Location:
        """Folder of the index table."""
        path = self.config.table.path
        if path is None or self.table_name is not None:
            return self._of_table.join("table")
        return open_location(path, options=self.config.storage.options)

    def student(self, name: str) -> Location:
        """Folder of a student: its weights, its scores, its errors."""
        return self.root.join("students", name)


@dataclass(frozen=True, kw_only=True)
class Reports:
    """What the stages of a run report: a JSON file for each in `reports/`, and `report.json` put together from them.

    A stage writes only its own file, so two that run side by side lose nothing of each other.
    """

    root: Location

    def read(self, stage: str, student: str | None = None) -> dict[str, Any]:
        """What a stage reported last; empty when it did not."""
        content = self._read(_file(stage, student))
        return {} if content is None else content

    def write(self, stage: str, content: dict[str, Any], student: str | None = None) -> None:
        """Put a stage's figures into its file, and `report.json` together anew."""
        write_json(self.root, _file(stage, student), content)
        report = self.whole()
        while True:
            write_json(self.root, REPORT, report)
            # Another stage may have reported since, and have written what we have now written over. The last one
            # to write looks again too, so in the end the report has all.
            again = self.whole()
            if again == report:
                return
            report = again

    def whole(self) -> dict[str, Any]:
        """The report of the run so far: `plan`, `fit`, `extract`, `students` by name, `relative_wer_reduction`."""
        # Versions before 0.2 kept all in this one file; what no file of a stage replaces is still true.
        report = self._read(REPORT) or {}
        students: dict[str, Any] = dict(report.get("students", {}))
        scores: dict[str, Any] = {}
        for name in self.root.join("reports").list():
            stage, _, student = name.removesuffix(".json").partition("-")
            content = self._read(f"reports/{name}")
            if content is None:
                continue
            if stage == "distill":
                students[student] = content
            elif stage == "decode":
                scores[student] = content
            else:
                report[stage] = content
        for student, score in scores.items():
            of = students.setdefault(student, {})
            # A score is of one training of a student, and not of the next one.
            if of.get("digest", score["digest"]) == score["digest"]:
                students[student] = {**of, "score": score}
        if students:
            students = {name: _with_valid_pairs(students, student) for name, student in students.items()}
            report |= {"students": students, "relative_wer_reduction": _relative_reduction(students)}
        return report

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            content = read_json(self.root, path)
        except ObjectMissingError:
            return None
        if not isinstance(content, dict):
            raise ArtifactError(
                f"{self.root.full_url(path)}: not a report; delete it, the stage writes it again"
            )
        return content


def _file(stage: str, student: str | None) -> str:
    return f"reports/{stage}.json" if student is None else f"reports/{stage}-{student}.json"


def _with_valid_pairs(students: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """Without comparisons with a training or a decoding of another student that is not its last one."""
    score = student.get("score", {})
    if "against" not in score:
        return student
    valid = {
        other: figures
        for other, figures in score["against"].items()
        if all(
            figures["of"][key] == students.get(other, {}).get("score", {}).get(key) for key in figures["of"]
        )
    }
    return {**student, "score": {**score, "against": valid}}


def _relative_reduction(students: dict[str, Any]) -> float | None:
    """Of the word error rate, by the codes; None unless the two students differ in nothing else."""
    pair = [students.get(name, {}) for name in ("baseline", "mvqkd")]
    if (
        not all("score" in student and "pair" in student for student in pair)
        or pair[0]["pair"] != pair[1]["pair"]
    ):
        return None
    without, with_codes = (student["score"]["wer"] for student in pair)
    return 1 - with_codes / without if without else None


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
