"""The alignment against its definition, in exact fractions and one frame after the other.

Shape suffixes: K teacher frames of one student frame.
"""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvqkd.models.alignment import IGNORE, NO_FRAME, AlignmentError, FrameAlignment

# Frame shifts in samples at 16 kHz, and receptive fields' centers: every rate and offset is a fraction of samples.
SAMPLES_HZ = 16_000
SHIFTS = (160, 200, 256, 320, 400, 640, 1000, 1280, 1920)


def plain(
    teacher_shift: int, student_shift: int, offsets: tuple[int, int], delay: int, teacher: int, student: int
) -> list[list[int]]:
    """What `index` is to give: for each student frame the run of teacher frames whose center is nearest to it."""
    ratio = Fraction(student_shift, teacher_shift)
    span = int(ratio) if ratio >= 1 and ratio.denominator == 1 else 1
    rows = []
    for frame in range(student):
        moment = offsets[1] + (frame - delay) * student_shift

        def distance(first: int, moment: int = moment) -> tuple[Fraction, int]:
            center = offsets[0] + (first + Fraction(span - 1, 2)) * teacher_shift
            return abs(center - moment), first

        middle = (moment - offsets[0]) // teacher_shift
        nearest = min(range(middle - span - 2, middle + 3), key=distance)
        rows.append([f if 0 <= f < teacher else NO_FRAME for f in range(nearest, nearest + span)])
    return rows


cases = st.tuples(
    st.sampled_from(SHIFTS),
    st.sampled_from(SHIFTS),
    st.tuples(st.integers(0, 1600), st.integers(0, 1600)),
    st.integers(0, 6),
    st.integers(0, 80),
    st.integers(0, 80),
)


def alignment_of(
    teacher_shift: int, student_shift: int, offsets: tuple[int, int], delay: int, missing: int
) -> FrameAlignment:
    return FrameAlignment(
        teacher_rate_hz=SAMPLES_HZ / teacher_shift,
        student_rate_hz=SAMPLES_HZ / student_shift,
        teacher_offset_s=offsets[0] / SAMPLES_HZ,
        student_offset_s=offsets[1] / SAMPLES_HZ,
        delay_frames=delay,
        max_missing_frames=missing,
    )


@settings(max_examples=300, deadline=None)
@given(cases)
def test_index_is_what_it_is_defined_to_be(case: tuple[int, int, tuple[int, int], int, int, int]) -> None:
    teacher_shift, student_shift, offsets, delay, teacher, student = case
    expected = plain(*case)
    missing = sum(NO_FRAME in row for row in expected)
    alignment = alignment_of(teacher_shift, student_shift, offsets, delay, max(0, missing - delay))
    index_SK = alignment.index(teacher, student)
    assert index_SK.dtype == torch.int64 and index_SK.shape == (student, alignment.frames_per_target)
    assert index_SK.tolist() == expected
    if missing > delay:
        strict = alignment_of(teacher_shift, student_shift, offsets, delay, missing - delay - 1)
        with pytest.raises(AlignmentError, match=f"{teacher} teacher frames leave {missing} of {student} "):
            strict.index(teacher, student)


@settings(max_examples=100, deadline=None)
@given(cases)
def test_codes_and_embeddings_follow_the_same_index(
    case: tuple[int, int, tuple[int, int], int, int, int],
) -> None:
    teacher_shift, student_shift, offsets, delay, teacher, student = case
    alignment = alignment_of(teacher_shift, student_shift, offsets, delay, 1000)
    expected = alignment.index(teacher, student).tolist()
    codes_TN = torch.arange(teacher)[:, None] + torch.tensor([0, 100])
    x_TD = torch.stack([torch.arange(teacher) * 0.5, torch.arange(teacher) - 7.0, torch.ones(teacher)], dim=1)
    codes = alignment(codes_TN, student).tolist()
    both = alignment.embeddings(x_TD.half(), student)
    mean = alignment.embeddings(x_TD.half(), student, span="mean")
    span = alignment.frames_per_target
    assert both.dtype == mean.dtype == torch.float32
    assert both.shape == (student, 3 * span) and mean.shape == (student, 3)
    for frame, row in enumerate(expected):
        assert codes[frame] == [c for f in row for c in ([IGNORE] * 2 if f == NO_FRAME else [f, f + 100])]
        if NO_FRAME in row:
            assert bool(both[frame].isnan().all()) and bool(mean[frame].isnan().all())
            continue
        assert both[frame].tolist() == [v for f in row for v in (f * 0.5, f - 7.0, 1.0)]
        middle = sum(row) / span
        assert mean[frame].tolist() == pytest.approx([middle * 0.5, middle - 7.0, 1.0], abs=1e-5)


def test_embeddings_of_a_slower_teacher_are_repeated() -> None:
    alignment = FrameAlignment(
        teacher_rate_hz=12.5, student_rate_hz=25.0, teacher_offset_s=0.04, student_offset_s=0.02
    )
    x_TD = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert alignment.embeddings(x_TD, 4).tolist() == [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"teacher_rate_hz": 0.0},
        {"student_rate_hz": -1.0},
        {"student_rate_hz": float("nan")},
        {"delay_frames": -1},
        {"max_missing_frames": -1},
    ],
)
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}="):
        FrameAlignment(**{"teacher_rate_hz": 50.0, "student_rate_hz": 25.0, **wrong})  # type: ignore[arg-type]
