"""Results of recognition and their error rates."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jiwer


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """One utterance: reference, hypothesis and word errors; `duration_s` in seconds."""

    cut_id: str
    duration_s: float
    speaker: str | None
    reference: str
    hypothesis: str
    substitutions: int
    deletions: int
    insertions: int
    words: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
        utterances, hours: that were recognized.
        left_out, left_out_hours: that were not; hours of those whose length is known.
    """

    wer: float
    cer: float
    words: int
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
    errors = sum(r.substitutions + r.deletions + r.insertions for r in recognized)
    characters = jiwer.process_characters(
        [r.reference for r in recognized], [r.hypothesis for r in recognized]
    )
    return Score(
        wer=errors / max(1, words),
        cer=characters.cer,
        words=words,
        utterances=len(recognized),
        hours=sum(r.duration_s for r in recognized) / 3600,
        left_out=len(left_out),
        left_out_hours=sum(r.duration_s or 0.0 for r in left_out) / 3600,
    )
