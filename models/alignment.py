"""Teacher frames to student frames, by numbers: hop and offset of both, never by guessing.

Shape suffixes: T teacher frames, S student frames, K teacher frames of one student frame, N codebooks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100


class AlignmentError(ValueError):
    """Codes and student frames of one utterance do not belong together."""


@dataclass(frozen=True, kw_only=True)
class FrameAlignment:
    """Which teacher frames are the targets of student frame t.

    An integer ratio of frame rates concatenates successive teacher frames (8 codebooks at 50 Hz are 16
    targets at 25 Hz, section 4.1 of the paper); other ratios take the nearest frame.

    Args:
        teacher_rate_hz, student_rate_hz: frames a second.
        teacher_offset_s, student_offset_s: time of the center of frame 0.
        delay_frames: a student frame is trained on codes that lie this many student frames earlier
            (streaming students that see no future).
        max_missing_frames: student frames, both ends together, for which the teacher may have nothing; they
            become -100.
    """

    teacher_rate_hz: float
    student_rate_hz: float
    teacher_offset_s: float = 0.0
    student_offset_s: float = 0.0
    delay_frames: int = 0
    max_missing_frames: int = 4

    @property
    def frames_per_target(self) -> int:
        """Teacher frames that one student frame predicts."""
        ratio = self.teacher_rate_hz / self.student_rate_hz
        return round(ratio) if ratio >= 1 and abs(ratio - round(ratio)) < 1e-6 else 1

    def __call__(self, codes_TN: Tensor, num_student_frames: int) -> Tensor:
        """Codes to targets, -100 where there is none.

        Args:
            codes_TN: uint8 (T, N).
            num_student_frames: S.

        Returns:
            int64 (S, N * frames_per_target), the codes of one teacher frame after the other.

        Raises:
            AlignmentError: more than `max_missing_frames` student frames would be without a target.
        """
        span = self.frames_per_target
        frame = torch.arange(num_student_frames) - self.delay_frames
        time_s = self.student_offset_s + frame.double() / self.student_rate_hz
        # The first of `span` teacher frames whose common center is nearest to the student frame's.
        first = (
            ((time_s - self.teacher_offset_s) * self.teacher_rate_hz - (span - 1) / 2 + 0.5 - 1e-6)
            .floor()
            .long()
        )
        index_SK = first.unsqueeze(1) + torch.arange(span)
        known_SK = (index_SK >= 0) & (index_SK < codes_TN.shape[0])
        missing = int((~known_SK.all(dim=1)).sum())
        if missing > self.max_missing_frames + self.delay_frames:
            raise AlignmentError(
                f"{codes_TN.shape[0]} teacher frames leave {missing} of {num_student_frames} student frames "
                f"without a target, more than distill.max_missing_frames ({self.max_missing_frames}): the "
                "codes are of other audio, or the frame rates are wrong; extract the table again"
            )
        targets_SKN = torch.full((*index_SK.shape, codes_TN.shape[1]), IGNORE)
        targets_SKN[known_SK] = codes_TN[index_SK[known_SK]].long()
        return targets_SKN.flatten(1)
