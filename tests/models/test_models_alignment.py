"""Teacher frames to student frames, computed by hand."""

import pytest
import torch
from torch import Tensor

from mvqkd.models.alignment import IGNORE, AlignmentError, FrameAlignment

X = IGNORE


def align(codes_TN: Tensor, frames: int, **changes: float) -> list[list[int]]:
    settings = {"teacher_rate_hz": 50.0, "student_rate_hz": 25.0, "student_offset_s": 0.03, **changes}
    targets_SK = FrameAlignment(**settings)(codes_TN, frames)  # type: ignore[arg-type]
    assert targets_SK.dtype == torch.int64
    return targets_SK.tolist()


def numbered(frames: int, codebooks: int = 1) -> Tensor:
    """Code n of frame t is 10 t + n."""
    return (torch.arange(frames)[:, None] * 10 + torch.arange(codebooks)).to(torch.uint8)


def test_hubert() -> None:
    """Centers 12.5, 32.5, ... ms; the student's 30, 70, ... lie nearest to the middles 22.5, 62.5, ..."""
    targets = align(numbered(6, 2), 3, teacher_offset_s=0.0125)
    assert targets == [[0, 1, 10, 11], [20, 21, 30, 31], [40, 41, 50, 51]]


def test_whisper() -> None:
    """Centers 0, 20, 40, ... ms; the student's 30 is exactly between frames 1 and 2."""
    assert align(numbered(7), 3, teacher_offset_s=0.0) == [[10, 20], [30, 40], [50, 60]]


def test_same_rate() -> None:
    assert align(numbered(3), 3, student_rate_hz=50.0, student_offset_s=0.0) == [[0], [10], [20]]


def test_ratio_that_is_not_whole_takes_the_nearest() -> None:
    """A student at 40 Hz: 0, 25, 50, 75, 100 ms are at teacher frames 0, 1.25, 2.5 (the lower), 3.75, 5."""
    targets = align(numbered(6), 5, student_rate_hz=40.0, student_offset_s=0.0)
    assert targets == [[0], [10], [20], [40], [50]]


def test_teacher_slower_than_the_student() -> None:
    """A teacher at 12.5 Hz: every code stands for two student frames."""
    targets = align(numbered(2), 4, teacher_rate_hz=12.5, teacher_offset_s=0.04, student_offset_s=0.02)
    assert targets == [[0], [0], [10], [10]]


def test_four_frames_to_one() -> None:
    targets = align(numbered(8), 2, teacher_rate_hz=100.0, student_offset_s=0.015)
    assert targets == [[0, 10, 20, 30], [40, 50, 60, 70]]


def test_missing_ends_are_ignored() -> None:
    assert align(numbered(4), 3, teacher_offset_s=0.0125) == [[0, 10], [20, 30], [X, X]]
    assert align(numbered(5), 3, teacher_offset_s=0.0125) == [[0, 10], [20, 30], [40, X]]
    assert align(numbered(4), 2, teacher_offset_s=0.0625) == [[X, X], [0, 10]]


def test_delay_shifts_targets_to_later_frames() -> None:
    targets = align(numbered(6), 4, teacher_offset_s=0.0125, delay_frames=2, max_missing_frames=0)
    assert targets == [[X, X], [X, X], [0, 10], [20, 30]]


def test_too_many_missing_frames() -> None:
    assert align(numbered(4), 4, teacher_offset_s=0.0125, max_missing_frames=2)[2:] == [[X, X], [X, X]]
    message = (
        r"4 teacher frames leave 2 of 4 student frames without a target, "
        r"more than distill.max_missing_frames \(1\).*extract the table again"
    )
    with pytest.raises(AlignmentError, match=message):
        align(numbered(4), 4, teacher_offset_s=0.0125, max_missing_frames=1)


def test_no_codes_at_all() -> None:
    assert align(numbered(0), 2) == [[X, X], [X, X]]
    with pytest.raises(AlignmentError, match="0 teacher frames leave 5 of 5"):
        align(numbered(0), 5)


def test_frames_per_target() -> None:
    rates = {(50.0, 25.0): 2, (50.0, 40.0): 1, (100.0, 25.0): 4, (50.0, 50.0): 1, (12.5, 25.0): 1}
    for (teacher, student), expected in rates.items():
        assert FrameAlignment(teacher_rate_hz=teacher, student_rate_hz=student).frames_per_target == expected


RATES = {
    "HuBERT at 16 kHz": (50.0, 0.0125),
    "HuBERT at 8 kHz": (25.0, 0.025),
    "Whisper": (50.0, 0.0),
    "Parakeet": (12.5, 0.04),
    "a teacher at 11,025 Hz": (11_025 / 320, 200 / 11_025),
}


@pytest.mark.parametrize("teacher", RATES)
@pytest.mark.parametrize("student_rate_hz", [25.0, 50.0, 100.0, 12.5])
def test_the_moment_of_a_frame_is_that_of_its_codes(teacher: str, student_rate_hz: float) -> None:
    """Each code says the time of its frame, in hundredths of a second: no student frame learns that of another one."""
    rate_hz, offset_s = RATES[teacher]
    time_T = offset_s + torch.arange(int(5 * rate_hz)) / rate_hz
    alignment = FrameAlignment(
        teacher_rate_hz=rate_hz,
        student_rate_hz=student_rate_hz,
        teacher_offset_s=offset_s,
        student_offset_s=0.03,
    )
    frames = int(4.9 * student_rate_hz)
    targets_SK = alignment((time_T * 100).round().to(torch.int64).unsqueeze(1), frames)
    own_S = 0.03 + torch.arange(frames) / student_rate_hz
    known_S = (targets_SK != X).all(dim=1)
    middle_S = targets_SK.double().mean(dim=1) / 100
    assert int((~known_S).sum()) <= 2
    # Half a teacher frame, or half the distance of two spans' middles, and the rounding of the codes.
    assert ((middle_S - own_S)[known_S].abs() <= 0.5 / rate_hz + 0.006).all()
    at = int((2.48 - 0.03) * student_rate_hz)
    assert middle_S[at] == pytest.approx(float(own_S[at]), abs=0.5 / rate_hz + 0.006)


def test_a_teacher_of_8_khz() -> None:
    """Its 320 samples are 40 ms, one code for each frame of the student; taken for 50 Hz, 2.48 s would learn 1.24 s."""
    codes_TN = torch.arange(100).unsqueeze(1)
    alignment = FrameAlignment(
        teacher_rate_hz=25.0, student_rate_hz=25.0, teacher_offset_s=0.025, student_offset_s=0.03
    )
    assert alignment.frames_per_target == 1
    assert alignment(codes_TN, 99)[62 - 1].tolist() == [
        61
    ]  # 0.03 + 61 / 25 = 2.47 s; 0.025 + 61 / 25 = 2.465 s
