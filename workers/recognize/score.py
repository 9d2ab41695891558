"""Recognizing a test part with a trained student, and its word error rate."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jiwer
import torch
from lhotse import MonoCut
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.features import LogMel
from mvqkd.models.students.conformer import MIN_SAMPLES
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import Units
from mvqkd.workers.audio import AudioLoader, decode_ahead, length_sorted_batches
from mvqkd.workers.cuts import UtteranceError, speaker_of, text_of


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """One utterance: reference, hypothesis and word errors."""

    cut_id: str
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
class Score:
    """Word and character error rate of a test part (fractions, not percent)."""

    wer: float
    cer: float
    words: int
    utterances: int
    left_out: int


class Recognizer:
    """Greedy decoding of cuts.

    Args:
        student: trained, on its device.
        units: its output units.
        loader: audio at 16 kHz.
        batch_seconds: upper bound of a padded batch.
    """

    def __init__(
        self, student: ConformerTransducer, units: Units, *, loader: AudioLoader, batch_seconds: float = 120.0
    ) -> None:
        self._student, self._units, self._loader = student.eval(), units, loader
        self._batch_seconds = batch_seconds
        self._log_mel = LogMel(loader.sample_rate_hz)
        self._device = next(student.parameters()).device

    def __call__(self, cuts: Iterable[MonoCut]) -> Iterator[Recognized | UtteranceError]:
        """One result for each cut that has a transcript, longest first; cuts without one are an error."""
        usable = []
        for cut in cuts:
            if text_of(cut) is None:
                yield UtteranceError(
                    cut.id, "has no transcript to compare with; remove it from the test part"
                )
            else:
                usable.append(cut)
        batches = length_sorted_batches(
            usable, [c.duration for c in usable], batch_seconds=self._batch_seconds
        )
        ordered = [cut for batch in batches for cut in batch]
        waveforms = decode_ahead(ordered, self._loader, threads=2, ahead=64)
        for batch in batches:
            good, features = [], []
            for cut in batch:
                waveform_T = next(waveforms)
                if isinstance(waveform_T, UtteranceError):
                    yield waveform_T
                elif waveform_T.numel() < MIN_SAMPLES:
                    yield UtteranceError(
                        cut.id,
                        f"{waveform_T.numel()} samples are too few for one frame of the student "
                        f"({MIN_SAMPLES}); remove it from the test part",
                    )
                else:
                    good.append(cut)
                    features.append(self._log_mel(waveform_T).to(self._device))
            if good:
                lengths_B = torch.tensor([len(f) for f in features], device=self._device)
                units = self._student.greedy(pad_sequence(features, batch_first=True), lengths_B)
                yield from (_compare(cut, self._units.decode(u)) for cut, u in zip(good, units, strict=True))


def score(results: Sequence[Recognized | UtteranceError]) -> Score:
    """Error rates over a test part.

    Raises:
        ValueError: nothing could be recognized.
    """
    recognized = [result for result in results if isinstance(result, Recognized)]
    if not recognized:
        raise ValueError("no utterance of the test part could be recognized; see the list of errors")
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
        left_out=len(results) - len(recognized),
    )


def _compare(cut: MonoCut, hypothesis: str) -> Recognized:
    reference, hypothesis = " ".join((text_of(cut) or "").split()), " ".join(hypothesis.split())
    measured = jiwer.process_words(reference, hypothesis)
    return Recognized(
        cut_id=cut.id,
        speaker=speaker_of(cut),
        reference=reference,
        hypothesis=hypothesis,
        substitutions=measured.substitutions,
        deletions=measured.deletions,
        insertions=measured.insertions,
        words=len(reference.split()),
    )
