"""Results of recognition and their error rates."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jiwer

from mvqkd.workers.recognize.bootstrap import Bootstrap, Unit
from mvqkd.workers.recognize.delay import Delays


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """One utterance: reference, hypothesis and word errors; `duration_s` in seconds.

    `delays` are of some utterances of a streaming student.
    """

    cut_id: str
    duration_s: float
    speaker: str | None
    reference: str
    hypothesis: str
    substitutions: int
    deletions: int
    insertions: int
    words: int
    delays: Delays | None = None

    @property
    def errors(self) -> int:
        """Word errors of all three kinds."""
        return self.substitutions + self.deletions + self.insertions

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without delays where there are none."""
        return {key: value for key, value in asdict(self).items() if key != "delays" or value is not None}


@dataclass(frozen=True, kw_only=True)
class NotRecognized:
    """An utterance of the test part that is not in the score, and why; `duration_s` is None where it is not known."""

    cut_id: str
    problem: str
    duration_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"cut_id": self.cut_id, "error": self.problem, "duration_s": self.duration_s}


@dataclass(frozen=True, kw_only=True)
class Score:
    """Error rates of a test part, and of how much of it they are.

    Attributes:
        wer, cer: word and character error rate (fractions, not percent).
        words: of the references.
        substitutions, deletions, insertions: word errors; `wer` is their sum over `words`.
        wer_low, wer_high: 95 % interval of `wer` by bootstrap; None where nothing can be drawn.
        interval_over, interval_units: what was drawn, and how many of them there are.
        utterances, hours: that were recognized.
        left_out, left_out_hours: that were not; hours of those whose length is known.
    """

    wer: float
    cer: float
    words: int
    substitutions: int
    deletions: int
    insertions: int
    wer_low: float | None
    wer_high: float | None
    interval_over: Unit
    interval_units: int
    utterances: int
    hours: float
    left_out: int
    left_out_hours: float


def score(results: Sequence[Recognized | NotRecognized]) -> Score:
    """Error rates over a test part.

    Raises:
        ValueError: nothing could be recognized.
    """
    recognized = [result for result in results if isinstance(result, Recognized)]
    if not recognized:
        raise ValueError("no utterance of the test part could be recognized; see the list of errors")
    left_out = [result for result in results if isinstance(result, NotRecognized)]
    words = sum(r.words for r in recognized)
    errors = [r.errors for r in recognized]
    bootstrap = Bootstrap({"it": errors}, [r.words for r in recognized], [r.speaker for r in recognized])
    interval = bootstrap.interval("it")
    characters = jiwer.process_characters(
        [r.reference for r in recognized], [r.hypothesis for r in recognized]
    )
    return Score(
        wer=sum(errors) / max(1, words),
        cer=characters.cer,
        words=words,
        substitutions=sum(r.substitutions for r in recognized),
        deletions=sum(r.deletions for r in recognized),
        insertions=sum(r.insertions for r in recognized),
        wer_low=None if interval is None else interval.low,
        wer_high=None if interval is None else interval.high,
        interval_over=bootstrap.over,
        interval_units=bootstrap.units,
        utterances=len(recognized),
        hours=sum(r.duration_s for r in recognized) / 3600,
        left_out=len(left_out),
        left_out_hours=sum(r.duration_s or 0.0 for r in left_out) / 3600,
    )


def read_results(lines: str, *, where: str) -> list[Recognized | NotRecognized]:
    """The results of a test part from the lines of its `errors.jsonl`, those of earlier versions too.

    Args:
        lines: one JSON object each.
        where: the file, for messages.

    Raises:
        ValueError: a line is none of ours; names file and line.
    """
    return list(_results(lines, where))


def _results(lines: str, where: str) -> Iterator[Recognized | NotRecognized]:
    # Not `splitlines`: texts may hold other separators of lines.
    for number, line in enumerate(lines.rstrip("\n").split("\n") if lines else [], start=1):
        try:
            found = json.loads(line)
            # Lines from before lengths were kept have none.
            duration_s = found.get("duration_s")
            if "error" in found:
                yield NotRecognized(cut_id=found["cut_id"], problem=found["error"], duration_s=duration_s)
                continue
            speaker = found.get("speaker")
            yield Recognized(
                cut_id=str(found["cut_id"]),
                reference=str(found["reference"]),
                hypothesis=str(found["hypothesis"]),
                substitutions=int(found["substitutions"]),
                deletions=int(found["deletions"]),
                insertions=int(found["insertions"]),
                words=int(found["words"]),
                duration_s=float(duration_s or 0.0),
                speaker=None if speaker is None else str(speaker),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where}, line {number}: not the result of an utterance ({type(error).__name__}: {error}); "
                "`mvqkd decode` writes the file again"
            ) from error
