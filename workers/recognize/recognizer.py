"""Recognizing cuts with a trained student, and a test part with its transcripts.

Shape suffixes: B utterances, T samples or feature frames, F features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jiwer
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.decoding.streaming import can_stream
from mvqkd.models.students.base import Student
from mvqkd.models.students.units import Units
from mvqkd.storage.location import Location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError, speaker_of, text_of, text_problem
from mvqkd.workers.decode_ahead import decoded_batches, length_sorted_batches
from mvqkd.workers.distill.student_record import load_student
from mvqkd.workers.plan import Shard, read_shard_cuts
from mvqkd.workers.recognize.delay import DelayMeter
from mvqkd.workers.recognize.score import NotRecognized, Recognized
from mvqkd.workers.recognize.settings import DecodeConfig
from mvqkd.workers.teacher import choose_device

DECODE_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class RecognizeSettings:
    """What a `ShardRecognizer` is built from, in the process where it works.

    Attributes:
        student: folder of the trained one.
        plan: folder of the test part's plan.
        root, options: where audio lies.
        batch_seconds: upper bound of a padded batch.
        decode: how the student is searched.
        delay_utterances: of each shard, whose delays are measured if the student is a streaming one.
        threads: of torch.
        use_gpu: whether the worker has one.
    """

    student: Location
    plan: Location
    root: str | None
    options: Mapping[str, str]
    batch_seconds: float
    decode: DecodeConfig
    delay_utterances: int
    threads: int
    use_gpu: bool

    def build(self) -> "ShardRecognizer":
        """Load the student in this process."""
        torch.set_num_threads(self.threads)
        student, units, _ = load_student(self.student)
        student = student.to(choose_device("auto" if self.use_gpu else "cpu"))
        loader = AudioLoader(student.frames.sample_rate_hz, s3=self.options, root=self.root)
        recognizer = Recognizer(
            student,
            units,
            loader=loader,
            begin=loader.begin,
            batch_seconds=self.batch_seconds,
            decode=self.decode,
        )
        meter = None
        if can_stream(student):
            meter = DelayMeter(student, units, loader=loader, chunk_s=self.decode.delay_chunk_s)
        return ShardRecognizer(
            recognizer, self.plan, delay_meter=meter, delay_utterances=self.delay_utterances
        )


class ShardRecognizer:
    """Recognizes planned shards.

    Args:
        recognizer: of cuts.
        plan: folder of the plan.
        delay_meter: of a streaming student.
        delay_utterances: the first so many cuts of each shard that are measured.
    """

    def __init__(
        self,
        recognizer: "Recognizer",
        plan: Location,
        *,
        delay_meter: DelayMeter | None = None,
        delay_utterances: int = 0,
    ) -> None:
        self._recognizer, self._plan = recognizer, plan
        self._delay_meter, self._delay_utterances = delay_meter, delay_utterances

    def run(
        self,
        shard: Shard,
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> list[Recognized | NotRecognized]:
        """One result for each cut of a shard; `note` is told the shard's `position` and its `done` utterances."""
        cuts = list(read_shard_cuts(self._plan, shard))
        measured = {cut.id: cut for cut in cuts[: self._delay_utterances]}
        results: list[Recognized | NotRecognized] = []
        for result in self._recognizer(cuts):
            if self._delay_meter and isinstance(result, Recognized) and result.cut_id in measured:
                result = replace(result, delays=self._delay_meter(measured[result.cut_id]))
            results.append(result)
            note({"position": shard.position, "done": len(results)})
        return results


class Recognizer:
    """What a student hears in cuts.

    Args:
        student: trained, on its device.
        units: its output units.
        loader: audio at the student's rate.
        begin: lets a store begin to send a cut's audio, if it lies in one.
        batch_seconds: upper bound of a padded batch.
        decode: how the student is searched.
    """

    def __init__(
        self,
        student: Student,
        units: Units,
        *,
        loader: Callable[[MonoCut], Tensor],
        begin: Callable[[MonoCut], None] | None = None,
        batch_seconds: float = 120.0,
        decode: DecodeConfig | None = None,
    ) -> None:
        self._student, self._units = student.eval(), units
        self._loader, self._begin = loader, begin
        self._batch_seconds, self._decode = batch_seconds, decode or DecodeConfig()
        self._device = next(student.parameters()).device

    def __call__(self, cuts: Iterable[MonoCut]) -> Iterator[Recognized | NotRecognized]:
        """One result for each cut, those with a transcript longest first."""
        usable = []
        for cut in cuts:
            if text_of(cut) is None:
                problem = (
                    text_problem(cut) or "has no transcript to compare with; remove it from the test part"
                )
                yield NotRecognized(cut_id=cut.id, problem=problem, duration_s=cut.duration)
            else:
                usable.append(cut)
        for cut, heard in self.texts(usable):
            if isinstance(heard, UtteranceError):
                yield NotRecognized(cut_id=cut.id, problem=heard.problem, duration_s=cut.duration)
            else:
                yield _compare(cut, heard)

    def texts(self, cuts: Sequence[MonoCut]) -> Iterator[tuple[MonoCut, str | UtteranceError]]:
        """Each cut and its text, or why there is none, longest first."""
        batches = length_sorted_batches(
            cuts, [cut.duration for cut in cuts], batch_seconds=self._batch_seconds
        )
        loaded = decoded_batches(batches, self._features, threads=DECODE_THREADS, begin=self._begin)
        for batch, results in zip(batches, loaded, strict=True):
            good, features = [], []
            for cut, result in zip(batch, results, strict=True):
                if isinstance(result, UtteranceError):
                    yield cut, result
                else:
                    good.append(cut)
                    features.append(result.to(self._device))
            if good:
                lengths_B = torch.tensor([len(f) for f in features], device=self._device)
                found = self._search(pad_sequence(features, batch_first=True), lengths_B)
                yield from zip(good, map(self._units.decode, found), strict=True)

    def _search(self, features_BTF: Tensor, lengths_B: Tensor) -> list[list[int]]:
        decode = self._decode
        if decode.search == "greedy":
            return self._student.greedy(features_BTF, lengths_B)
        return self._student.beam(
            features_BTF, lengths_B, beam=decode.beam, modified=decode.search == "modified_beam"
        )

    def _features(self, cut: MonoCut) -> Tensor:
        waveform_T = self._loader(cut)
        min_samples = self._student.frames.min_samples
        if waveform_T.numel() < min_samples:
            raise UtteranceError(
                cut.id,
                f"{waveform_T.numel()} samples are too few for one frame of the student ({min_samples}); leave it out",
            )
        return self._student.features(waveform_T)


def _compare(cut: MonoCut, hypothesis: str) -> Recognized:
    reference, hypothesis = " ".join((text_of(cut) or "").split()), " ".join(hypothesis.split())
    measured = jiwer.process_words(reference, hypothesis)
    return Recognized(
        cut_id=cut.id,
        duration_s=cut.duration,
        speaker=speaker_of(cut),
        reference=reference,
        hypothesis=hypothesis,
        substitutions=measured.substitutions,
        deletions=measured.deletions,
        insertions=measured.insertions,
        words=len(reference.split()),
    )
