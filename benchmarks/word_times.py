"""When words were spoken, by a forced alignment with a CTC student of ours, for measures of delay.

    python -m benchmarks.word_times STUDENT CUTS.jsonl OUT.jsonl

STUDENT is the folder of a student with `loss: ctc` that hears the whole utterance. OUT gets the cuts with the alignment
`word` in the form that Lhotse's aligners give it. As the `corpus.test` of a run file it lets `mvqkd decode` measure how
long after their end a streaming student says words. CTC says a unit in one frame, somewhere in the sound that it stands
for: an end is good to some 50 ms, and the same for all students that are measured against it.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from lhotse import CutSet, MonoCut
from lhotse.supervision import AlignmentItem
from rich.progress import track
from torchaudio.functional import forced_align, merge_tokens

from mvqkd.models.decoding.greedy import BLANK
from mvqkd.models.students.ctc import CtcStudent
from mvqkd.models.students.units import Units
from mvqkd.storage.location import open_location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError, text_of
from mvqkd.workers.distill.student_record import load_student
from mvqkd.workers.recognize.delay import WORDS, words_heard


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.word_times", description=__doc__)
    parser.add_argument("student")
    parser.add_argument("cuts", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    student, units, _ = load_student(open_location(arguments.student))
    if not isinstance(student, CtcStudent):
        parser.error(f"{arguments.student} is a {type(student).__name__}; train one with student.loss: ctc")
    aligned, left_out = align(student.eval(), units, CutSet.from_file(arguments.cuts))
    for error in left_out:
        print(f"left out: {error}", file=sys.stderr)
    CutSet.from_cuts(aligned).to_file(arguments.out)
    print(f"{len(aligned)} cuts with the times of their words, {len(left_out)} left out: {arguments.out}")


def align(student: CtcStudent, units: Units, cuts: CutSet) -> tuple[list[MonoCut], list[UtteranceError]]:
    """The cuts with the times of their words, and those that cannot have any."""
    loader = AudioLoader(student.frames.sample_rate_hz)
    aligned: list[MonoCut] = []
    left_out: list[UtteranceError] = []
    for cut in track(list(cuts), description="align"):
        try:
            items = word_times(student, units, cut, loader)
        except UtteranceError as error:
            left_out.append(error)
        else:
            (supervision,) = cut.supervisions
            aligned.append(replace(cut, supervisions=[replace(supervision, alignment={WORDS: items})]))
    return aligned, left_out


@torch.inference_mode()
def word_times(student: CtcStudent, units: Units, cut: MonoCut, loader: AudioLoader) -> list[AlignmentItem]:
    """The words of a cut, in seconds from the start of its recording.

    Raises:
        UtteranceError: it has no text, or several, or one with units that the student has not; its audio cannot be
            read, or is too short for its text.
    """
    text = text_of(cut)
    if not text or len(cut.supervisions) != 1:
        raise UtteranceError(cut.id, f"has {len(cut.supervisions)} supervisions; one with a text is aligned")
    features_BTF = student.features(loader(cut)).unsqueeze(0)
    logits_BSV, _ = student.logits(features_BTF, torch.tensor([features_BTF.shape[1]]))
    try:
        wanted = units.encode(text)
    except ValueError as error:
        raise UtteranceError(cut.id, str(error)) from error
    # Equal units in a row have a blank between them.
    needed = len(wanted) + sum(one == other for one, other in pairwise(wanted))
    if needed > logits_BSV.shape[1]:
        raise UtteranceError(cut.id, f"its text needs {needed} frames, its audio has {logits_BSV.shape[1]}")
    path_BS, scores_BS = forced_align(logits_BSV.log_softmax(-1), torch.tensor([wanted]), blank=BLANK)
    spans = merge_tokens(path_BS[0], scores_BS[0].exp(), blank=BLANK)
    frames = student.frames

    def time_s(frame: int) -> float:
        """When a frame begins: half a frame before its center."""
        return cut.start + frames.frame_offset_s + (frame - 0.5) / frames.frame_rate_hz

    ends = words_heard([span.token for span in spans], [time_s(span.end) for span in spans], units.decode)
    begins = [time_s(spans[first].start) for first in first_units(wanted, units)]
    return [
        AlignmentItem(word, round(begin_s, 6), round(end_s - begin_s, 6))
        for begin_s, (word, end_s) in zip(begins, ends, strict=True)
    ]


def first_units(wanted: list[int], units: Units) -> Iterator[int]:
    """The place of the first unit of each word."""
    words = 0
    for place in range(len(wanted)):
        if len(units.decode(wanted[: place + 1]).split()) > words:
            words += 1
            yield place


if __name__ == "__main__":
    main()
