"""Times of words are those of the frames in which CTC says them, counted from the start of the recording."""

from pathlib import Path

import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy
from torch import Tensor

from benchmarks.word_times import align
from mvqkd.models.students.base import StudentFrames
from mvqkd.models.students.ctc import CtcStudent
from mvqkd.models.students.units import CharUnits
from mvqkd.workers.recognize.delay import words_said

UNITS = CharUnits(" act")
SAID = {3: "a", 5: " ", 8: "c", 9: "a", 12: "t"}
"""By the frame that says it."""


class Known(CtcStudent):
    """Says "a cat" whatever it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = StudentFrames(
            sample_rate_hz=16_000, frame_rate_hz=25.0, frame_offset_s=0.03, min_samples=400
        )

    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        logits_BSV = torch.zeros(1, 20, len(UNITS))
        for frame in range(20):
            (unit,) = UNITS.encode(SAID[frame]) if frame in SAID else (0,)
            logits_BSV[0, frame, unit] = 9.0
        return logits_BSV, torch.tensor([20])


def test_times_of_words(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "r.wav", torch.randn(32_000).numpy() * 0.1, 16_000)
    recording = Recording("r", [AudioSource("file", [0], str(tmp_path / "r.wav"))], 16_000, 32_000, 2.0)
    said = SupervisionSegment("s", "r", start=0.0, duration=1.0, text="a cat")
    cut = MonoCut("c", start=0.5, duration=1.0, channel=0, supervisions=[said], recording=recording)
    (aligned,), left_out = align(Known(), UNITS, CutSet.from_cuts([cut]))
    items = aligned.supervisions[0].alignment["word"]
    assert left_out == []
    # Frame n is around 0.03 + n / 25 seconds.
    assert [item.symbol for item in items] == ["a", "cat"]
    assert [item.start for item in items] == pytest.approx([0.5 + 0.01 + 3 / 25, 0.5 + 0.01 + 8 / 25])
    assert [item.end for item in items] == pytest.approx([0.5 + 0.01 + 4 / 25, 0.5 + 0.01 + 13 / 25])
    assert words_said(aligned) == [("a", pytest.approx(0.17)), ("cat", pytest.approx(0.53))]
    # What cannot be aligned is named, and costs no other cut.
    short, silent = fastcopy(cut, id="short"), fastcopy(cut, id="silent", supervisions=[])
    short.supervisions = [fastcopy(said, text="a cat " * 9)]
    strange = fastcopy(cut, id="strange", supervisions=[fastcopy(said, text="a dog")])
    found, left_out = align(Known(), UNITS, CutSet.from_cuts([short, cut, silent, strange]))
    assert [each.id for each in found] == ["c"]
    assert [str(error) for error in left_out] == [
        "short: its text needs 54 frames, its audio has 20",
        "silent: has 0 supervisions; one with a text is aligned",
        "strange: transcript 'a dog' has characters outside the alphabet: ['d', 'g', 'o']",
    ]
