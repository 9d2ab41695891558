"""The course of a training, beside the student: JSON lines, and TensorBoard's events."""

import json
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mvqkd.pipeline.cluster.pool import Note
from mvqkd.pipeline.show.progress import say
from mvqkd.storage.errors import ObjectMissingError, StorageError
from mvqkd.storage.location import Location

LINES = "training.jsonl"
EVENTS = "tensorboard"
_OTHER_SCALARS = ("valid_wer", "lr", "utterances_per_s", "wait_share", "left_out", "epoch")


class TrainingLog:
    """Keeps the points of a training as they come; one that goes on keeps those of before.

    A store that cannot be written to does not end a training: it is said, and tried again with the next point.

    Args:
        out: the student's folder.
        key: digest of the training, by which its points are known.
    """

    def __init__(self, out: Location, key: str) -> None:
        from tensorboardX import SummaryWriter

        self._out, self._key = out, key
        self._points = read_points(out, key)
        # Events are appended to, which object stores do not know, so they grow here and are put there whole.
        self._folder = tempfile.TemporaryDirectory(prefix="mvqkd-events-")
        self._writer = SummaryWriter(self._folder.name, filename_suffix=f".{key}", flush_secs=3600)
        for point in self._points:
            self._add_scalars(point)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._put()
        self._folder.cleanup()

    def add(self, note: Note) -> None:
        """Keep a point that is new."""
        if self._points and note["step"] <= self._points[-1]["step"]:
            return
        self._points.append(note)
        self._add_scalars(note)
        self._put()

    def _add_scalars(self, point: Note) -> None:
        scalars = {"loss/transducer": point["transducer_loss"]}
        scalars |= {f"loss/{name}": value for name, value in point["head_losses"].items()}
        scalars |= {name: point[name] for name in _OTHER_SCALARS if point.get(name) is not None}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, point["step"])

    def _put(self) -> None:
        if not self._points:
            return
        self._writer.flush()
        lines = "".join(json.dumps({"digest": self._key, **point}) + "\n" for point in self._points)
        try:
            self._out.replace(LINES, lines.encode())
            for file in sorted(Path(self._folder.name).iterdir()):
                # One name, so that a training that goes on puts its events over those of before, which it has too.
                self._out.join(EVENTS).replace(f"events.out.tfevents.0.{self._key}", file.read_bytes())
        except StorageError as error:
            say(f"the log of the training is not written for now: {error}")


def read_points(out: Location, key: str) -> list[dict[str, Any]]:
    """Points of a training, from its beginning, without those of another one."""
    try:
        lines = out.read_bytes(LINES).decode().splitlines()
    except ObjectMissingError:
        return []
    points = [json.loads(line) for line in lines]
    return [point for point in points if point.pop("digest") == key]
