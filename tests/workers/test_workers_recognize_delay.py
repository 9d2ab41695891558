"""How late words come, against the times at which they were spoken."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lhotse import MonoCut
from lhotse.supervision import AlignmentItem
from torch import Tensor
from workers_fakes import cut_of, write_sound

from mvqkd.models.decoding import emission
from mvqkd.models.decoding.streaming import TimedUnit
from mvqkd.models.students.build import build_student
from mvqkd.models.students.kinds import EmformerConfig
from mvqkd.models.students.units import CharUnits
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.recognize.delay import (
    DelayMeter,
    Delays,
    report_delays,
    words_heard,
    words_said,
)

UNITS = CharUnits(" abcdefghijklmnopqrstuvwxyz")
CONFIG = EmformerConfig(
    encoder_dim=16, num_layers=1, num_heads=2, ffn_dim=16, segment_ms=160, right_context_ms=80
)


def aligned_cut(
    folder: Path, text: str, items: Sequence[tuple[str, float, float]], *, start: float
) -> MonoCut:
    """A cut from `start` on; times of the items count from the start of its recording."""
    cut = cut_of(write_sound(folder / "u.wav", 3.0), text=text, start=start, duration=2.0)
    (supervision,) = cut.supervisions
    words = [AlignmentItem(symbol, begin, length) for symbol, begin, length in items]
    return replace(cut, supervisions=[replace(supervision, alignment={"word": words})])


def timed(text: str, *, every_s: float) -> list[TimedUnit]:
    return [
        TimedUnit(unit=unit, time_s=0.0, heard_s=every_s * number)
        for number, unit in enumerate(UNITS.encode(text), start=1)
    ]


def test_words_end_where_the_alignment_says(tmp_path: Path) -> None:
    items = [("THE", 1.1, 0.2), ("", 1.3, 0.1), ("CAT", 1.4, 0.5)]
    cut = aligned_cut(tmp_path, "the cat", items, start=1.0)
    assert words_said(cut) == [("the", pytest.approx(0.3)), ("cat", pytest.approx(0.9))]


@pytest.mark.parametrize(
    "items", [[], [("the", 1.1, 0.2)], [("the", 1.1, 0.2), ("dog", 1.4, 0.5)]], ids=["none", "fewer", "other"]
)
def test_an_alignment_of_another_text_is_none(items: list[tuple[str, float, float]], tmp_path: Path) -> None:
    assert words_said(aligned_cut(tmp_path, "the cat", items, start=1.0)) is None


def test_a_word_is_there_with_its_last_unit() -> None:
    units = UNITS.encode("a cat sat")
    assert words_heard(units, range(len(units)), UNITS.decode) == [("a", 0), ("cat", 4), ("sat", 8)]
    assert words_heard([], [], UNITS.decode) == []


def test_delays_of_right_words_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [("the", 1.0, 0.2), ("black", 1.2, 0.2), ("cat", 1.5, 0.5), ("sat", 2.0, 0.5)]
    cut = aligned_cut(tmp_path, "the black cat sat", items, start=1.0)
    heard = timed("the cap a sat", every_s=0.1)

    def hear(decoder: object, waveform_T: Tensor, *, chunk_samples: int) -> list[TimedUnit]:
        assert (waveform_T.numel(), chunk_samples) == (32_000, 4000)
        return heard

    monkeypatch.setattr(emission, "hear", hear)
    student = build_student(CONFIG, len(UNITS)).eval()
    meter = DelayMeter(student, UNITS, loader=AudioLoader(16_000), chunk_s=0.25)
    delays = meter(cut)
    # "the" ended after 0.2 s and was there after 0.3 s; "sat" ended after 1.5 s and was there after 1.3 s.
    assert delays.words_s == pytest.approx((0.1, -0.2))
    assert delays.latency_s == student.latency_s
    heard.clear()
    assert meter(cut).words_s == () == meter(cut).waits_s


def test_all_together() -> None:
    one = Delays(latency_s=0.5, waits_s=(0.1, 0.3), words_s=(0.4,))
    other = Delays(latency_s=0.5, waits_s=(0.2,), words_s=None)
    report = report_delays([one, other], chunk_s=0.1)
    assert report is not None and report.waits is not None and report.words is not None
    assert (report.utterances, report.aligned, report.latency_s, report.chunk_s) == (2, 1, 0.5, 0.1)
    assert (report.waits.units, report.waits.median_s, report.words.units) == (3, 0.2, 1)
    silent = report_delays([Delays(latency_s=0.5, waits_s=(), words_s=())], chunk_s=0.1)
    assert silent is not None and (silent.waits, silent.words, silent.aligned) == (None, None, 1)
    assert report_delays([], chunk_s=0.1) is None
