"""A run: its configuration and where each of its results lives."""

import hashlib
import json
from typing import Any, Literal

from mvqkd.pipeline.run_config import RunConfig
from mvqkd.storage.artifacts import read_json, write_json
from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.location import Location, open_location

REPORT = "report.json"
SAMPLE_RATE_HZ = 16_000  # of every teacher that `models.teachers` knows, and of the student


class Run:
    """Folders below `storage.root`: `plan/train`, `plan/test`, `quantizer`, `table`, `students/<name>`."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.root = open_location(config.storage.root, options=config.storage.options)

    def plan(self, part: Literal["train", "test"]) -> Location:
        """Folder of a shard plan."""
        return self.root.join("plan", part)

    @property
    def quantizer(self) -> Location:
        """Folder of the quantizer artifact."""
        return self.root.join("quantizer")

    @property
    def table(self) -> Location:
        """Folder of the index table."""
        path = self.config.table.path
        return open_location(path, options=self.config.storage.options) if path else self.root.join("table")

    def student(self, name: str) -> Location:
        """Folder of a student: its weights, its scores, its errors."""
        return self.root.join("students", name)

    def read_report(self) -> dict[str, Any]:
        """What the stages reported so far."""
        try:
            report = read_json(self.root, REPORT)
        except ObjectMissingError:
            return {}
        assert isinstance(report, dict)
        return report

    def add_to_report(self, section: str, content: Any) -> None:
        """Put one stage's figures into `report.json`, over those of an earlier time."""
        write_json(self.root, REPORT, {**self.read_report(), section: content})


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
