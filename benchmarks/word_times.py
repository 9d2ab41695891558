"""When words were spoken, by a forced alignment with a CTC student of ours, for measures of delay.

    python -m benchmarks.word_times STUDENT CUTS.jsonl OUT.jsonl

STUDENT is the folder of a student with `loss: ctc` that hears the whole utterance. OUT gets the cuts with the alignment
`word` in the form that Lhotse's aligners give it. As the `corpus.test` of a run file it lets `mvqkd decode` measure how
long after their end a streaming student says words. CTC says a unit in one frame, somewhere in the sound that it stands
for: an end is good to some 50 ms, and the same for all students that are measured against it.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from lhotse import CutSet, MonoCut
from lhotse.supervision import AlignmentItem
from rich.progress import track
from torchaudio.functional import forced_align, merge_tokens

from mvqkd.models.decoding.streaming import TimedUnit
from mvqkd.models.students.ctc import CtcStudent
from mvqkd.models.students.units import Units
from mvqkd.storage.location import open_location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import text_of
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
    cuts = CutSet.from_file(arguments.cuts)
    CutSet.from_cuts(aligned(student.eval(), units, cuts)).to_file(arguments.out)
    print(f"{len(cuts)} cuts with the times of their words: {arguments.out}")


def aligned(student: CtcStudent, units: Units, cuts: CutSet) -> Iterator[MonoCut]:
    """Each cut that has a text, with the times of its words."""
    loader = AudioLoader(student.frames.sample_rate_hz)
    for cut in track(list(cuts), description="align"):
        text = text_of(cut)
        if not text:
            continue
        (supervision,) = cut.supervisions
        yield replace(
            cut,
            supervisions=[
                replace(supervision, alignment={WORDS: word_times(student, units, cut, text, loader)})
            ],
        )


@torch.inference_mode()
def word_times(
    student: CtcStudent, units: Units, cut: MonoCut, text: str, loader: AudioLoader
) -> list[AlignmentItem]:
    """The words of a text in the audio of its cut, in seconds from the start of the recording."""
    features_BTF = student.features(loader(cut)).unsqueeze(0)
    logits_BSV, _ = student.logits(features_BTF, torch.tensor([features_BTF.shape[1]]))
    wanted_BU = torch.tensor([units.encode(text)])
    path_BS, scores_BS = forced_align(logits_BSV.log_softmax(-1), wanted_BU, blank=0)
    frame_s = 1 / student.frames.frame_rate_hz
    first_s = student.frames.frame_offset_s - frame_s / 2
    spans = merge_tokens(path_BS[0], scores_BS[0].exp())
    starts, ends = (
        [
            TimedUnit(unit=span.token, time_s=0.0, heard_s=first_s + getattr(span, side) * frame_s)
            for span in spans
        ]
        for side in ("start", "end")
    )
    begin = dict(enumerate(begins(starts, units)))
    return [
        AlignmentItem(word, round(cut.start + begin[number], 6), round(end_s - begin[number], 6))
        for number, (word, end_s) in enumerate(words_heard(ends, units.decode))
    ]


def begins(starts: list[TimedUnit], units: Units) -> Iterator[float]:
    """When the first unit of each word begins."""
    found = 0
    for number, unit in enumerate(starts, start=1):
        words = len(units.decode([each.unit for each in starts[:number]]).split())
        if words > found:
            found = words
            yield unit.heard_s


if __name__ == "__main__":
    main()
