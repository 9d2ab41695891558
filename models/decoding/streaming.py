"""Recognizing audio while it comes in: chunks of samples to units with the times of their emission.

Shape suffixes: S the student's frames, D the encoder's channels, B utterances, C units of context, J joiner channels, V
different units.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mvqkd.models.decoding.greedy import BLANK
from mvqkd.models.students.base import StudentFrames


class EncoderStream(Protocol):
    """The encoder's frames of one utterance, as its samples come."""

    def feed(self, samples: Tensor) -> Tensor:
        """The frames (S, D) that so many more float32 samples (num_samples,) complete; perhaps none."""
        ...

    def finish(self) -> Tensor:
        """The frames that are left when the utterance has ended."""
        ...


class FrameSearch(Protocol):
    """The search through the frames of one utterance."""

    def __call__(self, encoded_SD: Tensor) -> list[tuple[int, int]]:
        """Units that the next frames bring, each with the number of its frame among these."""
        ...


class StreamingStudent(Protocol):
    """What a student, also one of one's own, needs for `StreamingDecoder`.

    Attributes:
        frames: when its frames are.
        latency_s: see `Student.latency_s`.
    """

    frames: StudentFrames

    @property
    def latency_s(self) -> float: ...

    def open_stream(self) -> EncoderStream:
        """The frames of a new utterance."""
        ...

    def open_search(self) -> FrameSearch:
        """The search through them."""
        ...


@dataclass(frozen=True, kw_only=True)
class TimedUnit:
    """A unit of a stream.

    Attributes:
        unit: not blank.
        time_s: center of the frame that brought it, from the beginning of the audio.
        heard_s: audio that had been fed when it came out.
    """

    unit: int
    time_s: float
    heard_s: float


def can_stream(student: object) -> bool:
    """Whether a student recognizes while audio comes in: it is a `StreamingStudent`, and its latency is finite."""
    return hasattr(student, "open_stream") and math.isfinite(getattr(student, "latency_s", math.inf))


class StreamingDecoder:
    """Recognizes one utterance after the other, each chunk by chunk.

    The units are those of the student's `greedy` on the whole utterance, however it is cut into chunks.

    Args:
        student: trained, in eval mode.

    Raises:
        ValueError: the student hears the whole utterance before its first unit.
    """

    def __init__(self, student: StreamingStudent) -> None:
        if not can_stream(student):
            raise ValueError(
                f"a {type(student).__name__} hears the whole utterance before its first unit; train a student with "
                "student.kind: emformer to recognize while audio comes in"
            )
        self._student = student
        self.reset()

    @property
    def latency_s(self) -> float:
        """Longest time from a frame's center to the end of the audio that it needs."""
        return self._student.latency_s

    def reset(self) -> None:
        """Begin a new utterance."""
        self._stream, self._search = self._student.open_stream(), self._student.open_search()
        self._samples = self._frames = 0

    def feed(self, samples: Tensor) -> list[TimedUnit]:
        """Units that so many more float32 samples (num_samples,) at the student's rate bring; perhaps none."""
        self._samples += samples.numel()
        return self._units(self._stream.feed(samples))

    def finish(self) -> list[TimedUnit]:
        """Units that the end of the utterance brings; the next samples are of a new one."""
        units = self._units(self._stream.finish())
        self.reset()
        return units

    @torch.inference_mode()
    def _units(self, encoded_SD: Tensor) -> list[TimedUnit]:
        frames = self._student.frames
        heard_s = self._samples / frames.sample_rate_hz
        units = [
            TimedUnit(
                unit=unit,
                time_s=frames.frame_offset_s + (self._frames + number) / frames.frame_rate_hz,
                heard_s=heard_s,
            )
            for unit, number in self._search(encoded_SD)
        ]
        self._frames += len(encoded_SD)
        return units


class TransducerSearch:
    """The most probable unit at every step of a transducer, as `greedy_transducer`.

    Args:
        project: the encoder's frames (S, D) to what `join` takes, (S, J).
        predict: the last `context` units, int64 (B, C), blank before the first, to what `join` takes, (B, J).
        join: one frame and `predict`'s, (B, J) each, to logits (B, V).
        context: C.
        device: of the student.
        max_units_per_frame: after so many the search goes on to the next frame.
    """

    def __init__(
        self,
        *,
        project: Callable[[Tensor], Tensor],
        predict: Callable[[Tensor], Tensor],
        join: Callable[[Tensor, Tensor], Tensor],
        context: int,
        device: torch.device,
        max_units_per_frame: int = 4,
    ) -> None:
        self._project, self._predict, self._join = project, predict, join
        self._most = max_units_per_frame
        self._history_BC = torch.full((1, context), BLANK, dtype=torch.long, device=device)
        self._predicted_BJ: Tensor | None = None

    def __call__(self, encoded_SD: Tensor) -> list[tuple[int, int]]:
        """See `FrameSearch`."""
        if self._predicted_BJ is None:
            self._predicted_BJ = self._predict(self._history_BC)
        units: list[tuple[int, int]] = []
        for number, projected_J in enumerate(self._project(encoded_SD) if len(encoded_SD) else ()):
            for _ in range(self._most):
                unit_B = self._join(projected_J.unsqueeze(0), self._predicted_BJ).argmax(-1)
                if unit_B == BLANK:
                    break
                units.append((int(unit_B), number))
                self._history_BC = torch.cat([self._history_BC[:, 1:], unit_B.unsqueeze(1)], dim=1)
                self._predicted_BJ = self._predict(self._history_BC)
        return units


class CtcSearch:
    """The most probable unit of every frame of a CTC model, as `greedy_ctc`.

    Args:
        output: the encoder's frames (S, D) to logits (S, V).
    """

    def __init__(self, output: Callable[[Tensor], Tensor]) -> None:
        self._output, self._last = output, BLANK

    def __call__(self, encoded_SD: Tensor) -> list[tuple[int, int]]:
        """See `FrameSearch`; a run of one unit is that unit in its first frame."""
        units: list[tuple[int, int]] = []
        for number, unit in enumerate(self._output(encoded_SD).argmax(-1).tolist()):
            if unit not in (BLANK, self._last):
                units.append((unit, number))
            self._last = unit
        return units
