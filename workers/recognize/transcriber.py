"""Texts of audio files of any length, rate and number of channels.

Shape suffixes: T samples.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut, Recording
from lhotse.utils import fastcopy
from torch import Tensor

from mvqkd.models.students.base import Student
from mvqkd.models.students.units import Units
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.recognize.recognizer import Recognizer
from mvqkd.workers.recognize.settings import DecodeConfig

BATCHES_TOGETHER = 4
"""So many batches' audio is sorted by length together, before the texts of the first of it are told."""
SHORTEST_WINDOW_S = 5.0
_QUIET_S, _STEP_S = 0.2, 0.02
"""A window ends in the middle of the quietest so many seconds, looked for in such steps."""
_LAST_WINDOW_S = 1.0
_LONGEST_S = 1e6
"""Longer is what a header says that was written before its audio."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What is said in a file of `duration_s` seconds."""

    file: str
    text: str
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"file": self.file, "text": self.text, "duration_s": self.duration_s}


@dataclass(frozen=True, kw_only=True)
class NotTranscribed:
    """A file that has no text, and why."""

    file: str
    problem: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"file": self.file, "error": self.problem}


@dataclass(kw_only=True)
class _File:
    """A file on its way: texts of its windows by their start, and the first problem."""

    name: str
    texts: dict[float, str] = field(default_factory=dict)
    problem: str | None = None
    duration_s: float = 0.0
    is_whole: bool = False

    def result(self) -> Transcript | NotTranscribed:
        if self.problem is not None:
            return NotTranscribed(file=self.name, problem=self.problem)
        words = " ".join(self.texts[start] for start in sorted(self.texts)).split()
        return Transcript(file=self.name, text=" ".join(words), duration_s=self.duration_s)


class Transcriber:
    """Recognizes files, some together in a batch, in bounded memory.

    Audio of another rate is resampled, channels are averaged unless one is chosen. A file longer than `window_s` is
    heard in windows that end where it is quiet: in the middle of the quietest 0.2 s of their last third, at most 5 s.

    Args:
        student: trained, on its device.
        units: its output units.
        decode: how the student is searched.
        window_s: the longest that the student hears at a time; at least 5.
        channel: that is heard, from 0; None averages all.
        batch_seconds: upper bound of a padded batch, where no single window is longer.

    Raises:
        ValueError: windows that are too short.
    """

    def __init__(
        self,
        student: Student,
        units: Units,
        *,
        decode: DecodeConfig | None = None,
        window_s: float = 30.0,
        channel: int | None = None,
        batch_seconds: float = 120.0,
    ) -> None:
        if not window_s >= SHORTEST_WINDOW_S:
            raise ValueError(
                f"windows of {window_s:g} s cut too many words; take {SHORTEST_WINDOW_S:g} s or more"
            )
        self._window_s, self._channel, self._batch_seconds = window_s, channel, batch_seconds
        self._audio = AudioLoader(student.frames.sample_rate_hz)
        self._sample_rate_hz = student.frames.sample_rate_hz
        self._recognizer = Recognizer(
            student, units, loader=self._load, batch_seconds=batch_seconds, decode=decode
        )

    def __call__(
        self, names: Iterable[str], *, note: Callable[[float], None] = lambda _: None
    ) -> Iterator[Transcript | NotTranscribed]:
        """One result for each file, in order. `note` is told the seconds of audio that were heard."""
        waiting: list[_File] = []
        together: list[MonoCut] = []
        seconds = 0.0
        for name in names:
            file = _File(name=name)
            waiting.append(file)
            for cut in self._windows(file):
                together.append(cut)
                seconds += cut.duration
                if seconds >= BATCHES_TOGETHER * self._batch_seconds:
                    self._hear(together, note)
                    together, seconds = [], 0.0
                    yield from _finished(waiting)
            file.is_whole = True
        self._hear(together, note)
        yield from _finished(waiting)

    def _hear(self, cuts: Sequence[MonoCut], note: Callable[[float], None]) -> None:
        for cut, heard in self._recognizer.texts(cuts):
            file: _File = cut.custom["file"]
            if isinstance(heard, UtteranceError):
                file.problem = file.problem or f"{heard.problem} (from {cut.start:.2f} s)"
            else:
                file.texts[cut.start] = heard
            note(cut.duration)

    def _windows(self, file: _File) -> Iterator[MonoCut]:
        """Of a file, in order, up to the first problem."""
        try:
            recording = _recording(file.name)
            if self._channel is not None and self._channel not in recording.channel_ids:
                raise UtteranceError(
                    file.name,
                    f"has no channel {self._channel}, only {recording.channel_ids}; choose another one",
                )
            file.duration_s = recording.duration
            channel = recording.channel_ids[0] if self._channel is None else self._channel
            part = partial(MonoCut, id=file.name, channel=channel, recording=recording, custom={"file": file})
            start = 0.0
            while recording.duration - start > self._window_s and file.problem is None:
                end = self._quiet_end(part, start, recording.duration)
                yield part(start=start, duration=round(end - start, 8))
                start = end
            if file.problem is None:
                yield part(start=start, duration=round(recording.duration - start, 8))
        except UtteranceError as error:
            file.problem = file.problem or error.problem

    def _quiet_end(self, part: Callable[..., MonoCut], start: float, duration_s: float) -> float:
        """Where a window that begins at `start` ends, so that another one follows."""
        latest = min(start + self._window_s, duration_s - _LAST_WINDOW_S)
        earliest = max(latest - min(5.0, self._window_s / 3), start + 1.0)
        waveform_T = self._load(part(start=earliest, duration=round(latest - earliest, 8)))
        width, step = round(_QUIET_S * self._sample_rate_hz), round(_STEP_S * self._sample_rate_hz)
        if len(waveform_T) < width:
            return latest
        energy = waveform_T.double().square().unfold(0, width, step).mean(dim=-1)
        middle_s = int(energy.argmin()) * _STEP_S + _QUIET_S / 2
        # A whole number of hundredths, so that windows of files at any usual rate begin at a sample.
        return round(earliest + middle_s, 2)

    def _load(self, cut: MonoCut) -> Tensor:
        """float32 (T,) of one window, at the student's rate."""
        channels = cut.recording.channel_ids if self._channel is None else [cut.channel]
        try:
            each = [self._audio(fastcopy(cut, channel=channel)) for channel in channels]
        except OSError as error:
            raise UtteranceError(cut.id, f"cannot be read ({error.strerror or error})") from error
        except UtteranceError as error:
            if error.__cause__ is None:
                raise
            # The loader's words are about manifests, and there is none here.
            raise UtteranceError(
                cut.id, "the audio is damaged and cannot be decoded; write it again"
            ) from error
        return each[0] if len(each) == 1 else torch.stack(each).mean(dim=0)


def _finished(waiting: list[_File]) -> Iterator[Transcript | NotTranscribed]:
    """Results of the files at the front all of whose windows were heard; they leave the list."""
    while waiting and waiting[0].is_whole:
        yield waiting.pop(0).result()


def _recording(name: str) -> Recording:
    """What a file's header says. Raises UtteranceError if it has none."""
    path = Path(name).expanduser().absolute()
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UtteranceError(name, f"cannot be read: {problem}; check the path") from error
    if is_empty:
        raise UtteranceError(name, "the file is empty; write it again")
    try:
        recording = Recording.from_file(path, recording_id=name)
    except Exception as error:  # decoders raise what they like
        raise UtteranceError(
            name, "is no audio of a format that is known here; convert it to WAV or FLAC"
        ) from error
    if not 0 < recording.duration < _LONGEST_S or not math.isfinite(recording.duration):
        raise UtteranceError(
            name,
            f"lasts {recording.duration:g} s by its header, so it has no audio or a damaged header; write it again",
        )
    return recording
