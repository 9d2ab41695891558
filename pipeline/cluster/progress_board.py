"""Where workers say how far they are. A room of its own: its process imports nothing else."""

from typing import Any


class ProgressBoard:
    """Where workers say how far they are; the driver looks at it. Made an actor by the driver."""

    def __init__(self) -> None:
        self._notes: dict[str, dict[str, Any]] = {}

    def put(self, worker: str, note: dict[str, Any]) -> None:
        """Replace a worker's note."""
        self._notes[worker] = note

    def get(self) -> dict[str, dict[str, Any]]:
        """The latest note of every worker."""
        return self._notes
