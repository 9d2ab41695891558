"""How late a streaming student says what was spoken.

Shape suffix: T samples.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvqkd.workers.recognize.align import align

if TYPE_CHECKING:
    from lhotse import MonoCut
    from torch import Tensor

    from mvqkd.models.decoding.emission import EmissionDelay
    from mvqkd.models.decoding.streaming import TimedUnit
    from mvqkd.models.students.base import Student
    from mvqkd.models.students.units import Units

WORDS = "word"
"""What Lhotse's aligners and recipes call the alignment of words."""


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Of one utterance, in seconds of audio.

    Attributes:
        latency_s: `Student.latency_s`.
        waits_s: for each unit, how much audio had come in when it came out, less the center of its frame.
        words_s: for each word that was said and heard, how much audio had come in when its last unit came out, less
            the end of the word in the cut's alignment; negative where that was known before. None where the cut has
            no alignment of its text.
    """

    latency_s: float
    waits_s: tuple[float, ...]
    words_s: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class DelayReport:
    """Of a test part.

    Attributes:
        latency_s: algorithmic: the longest time from a frame's center to the end of the audio that it needs.
        chunk_s: the audio came in chunks of so many seconds.
        utterances, aligned: that were measured, and that had an alignment.
        waits: of units, from their frames; None where nothing was said.
        words: of words, from their ends; None where there was no alignment, or no word was right.
    """

    latency_s: float
    chunk_s: float
    utterances: int
    aligned: int
    waits: "EmissionDelay | None"
    words: "EmissionDelay | None"


class DelayMeter:
    """Hears utterances in chunks, as a microphone gives them.

    Args:
        student: a streaming one.
        units: its output units.
        loader: audio at the student's rate.
        chunk_s: of a chunk.
    """

    def __init__(
        self, student: "Student", units: "Units", *, loader: Callable[["MonoCut"], "Tensor"], chunk_s: float
    ) -> None:
        from mvqkd.models.decoding.streaming import StreamingDecoder

        self._decoder, self._units, self._loader = StreamingDecoder(student), units, loader  # type: ignore[arg-type]
        self._chunk_samples = max(1, round(chunk_s * student.frames.sample_rate_hz))

    def __call__(self, cut: "MonoCut") -> Delays:
        """The delays of one utterance, whose audio can be read.

        Raises:
            UtteranceError: it cannot.
        """
        from mvqkd.models.decoding.emission import hear

        heard = hear(self._decoder, self._loader(cut), chunk_samples=self._chunk_samples)
        return Delays(
            latency_s=self._decoder.latency_s,
            waits_s=tuple(unit.heard_s - unit.time_s for unit in heard),
            words_s=self._words_s(cut, heard),
        )

    def _words_s(self, cut: "MonoCut", heard: "Sequence[TimedUnit]") -> tuple[float, ...] | None:
        said = words_said(cut)
        if said is None:
            return None
        words = words_heard(
            [unit.unit for unit in heard], [unit.heard_s for unit in heard], self._units.decode
        )
        places = align(" ".join(word for word, _ in said), " ".join(word for word, _ in words))
        ends, outs = iter(said), iter(words)
        delays_s = []
        for place in places:
            end = next(ends) if place.said is not None else None
            out = next(outs) if place.heard is not None else None
            if place.kind == "equal":
                assert end is not None
                assert out is not None
                delays_s.append(out[1] - end[1])
        return tuple(delays_s)


def words_said(cut: "MonoCut") -> list[tuple[str, float]] | None:
    """The cut's words, each with its end in seconds from the start of the cut.

    None unless every supervision with a text has an alignment of just these words. Symbols of white space, with which
    some aligners mark pauses, are no words. The case of an alignment is not looked at.
    """
    found: list[tuple[str, float]] = []
    for supervision in sorted(cut.supervisions, key=lambda s: s.start):
        words = (supervision.text or "").split()
        items = [item for item in (supervision.alignment or {}).get(WORDS, ()) if item.symbol.strip()]
        if [item.symbol.strip().casefold() for item in items] != [word.casefold() for word in words]:
            return None
        # The times of an alignment count from the start of the recording, unlike those of the supervision.
        found += [(word, item.end - cut.start) for word, item in zip(words, items, strict=True)]
    return found or None


def words_heard(
    units: Sequence[int], times_s: Sequence[float], decode: Callable[[list[int]], str]
) -> list[tuple[str, float]]:
    """The words that units make, each with the time of its last unit."""
    words = decode(list(units)).split()
    heard: list[tuple[str, float]] = []
    for number, time_s in enumerate(times_s, start=1):
        # A word is there as soon as it is what it stays, though only the next unit may show that it has ended.
        so_far = decode(list(units[:number])).split()
        while len(heard) < min(len(words), len(so_far)) and so_far[len(heard)] == words[len(heard)]:
            heard.append((words[len(heard)], time_s))
    return heard


def report_delays(found: Iterable[Delays], *, chunk_s: float) -> DelayReport | None:
    """Of all utterances together; None where none was measured."""
    from mvqkd.models.decoding.emission import summarize

    delays = list(found)
    if not delays:
        return None
    waits_s = [wait_s for each in delays for wait_s in each.waits_s]
    words_s = [delay_s for each in delays for delay_s in each.words_s or ()]
    return DelayReport(
        latency_s=delays[0].latency_s,
        chunk_s=chunk_s,
        utterances=len(delays),
        aligned=sum(each.words_s is not None for each in delays),
        waits=summarize(waits_s) if waits_s else None,
        words=summarize(words_s) if words_s else None,
    )
