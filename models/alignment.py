"""Teacher frames to student frames, by numbers: hop and offset of both, never by guessing.

Shape suffixes: T teacher frames, S student frames, K teacher frames of one student frame, N codebooks, D embedding
dimension.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

IGNORE = -100
NO_FRAME = -1
"""In an index map: there is no such teacher frame."""

Span = Literal["concat", "mean"]
"""What becomes of several embeddings that are for one student frame."""


class AlignmentError(ValueError):
    """Targets and student frames of one utterance do not belong together."""


@dataclass(frozen=True, kw_only=True)
class FrameAlignment:
    """Which teacher frames are the targets of student frame t.

    An integer ratio of frame rates takes successive teacher frames together (8 codebooks at 50 Hz are 16
    targets at 25 Hz, section 4.1 of the paper); other ratios take the nearest frame. A teacher slower than the student
    is such a ratio: each of its frames is the target of all student frames that it is nearest to, so that every student
    frame has one.

    Args:
        teacher_rate_hz, student_rate_hz: frames a second.
        teacher_offset_s, student_offset_s: time of the center of frame 0.
        delay_frames: a student frame is trained on targets that lie this many student frames earlier
            (streaming students that see no future).
        max_missing_frames: student frames, both ends together, for which the teacher may have nothing; they
            have no target. The first `delay_frames` come on top.

    Raises:
        ValueError: a rate that is not above 0, or a negative number of frames.
    """

    teacher_rate_hz: float
    student_rate_hz: float
    teacher_offset_s: float = 0.0
    student_offset_s: float = 0.0
    delay_frames: int = 0
    max_missing_frames: int = 4

    def __post_init__(self) -> None:
        for name in ("teacher_rate_hz", "student_rate_hz"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number of frames a second above 0")
        for name in ("delay_frames", "max_missing_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    @property
    def frames_per_target(self) -> int:
        """K, teacher frames that one student frame predicts."""
        ratio = self.teacher_rate_hz / self.student_rate_hz
        return round(ratio) if ratio >= 1 and abs(ratio - round(ratio)) < 1e-6 else 1

    def index(self, num_teacher_frames: int, num_student_frames: int) -> Tensor:
        """The teacher frames of every student frame.

        Args:
            num_teacher_frames: T.
            num_student_frames: S.

        Returns:
            int64 (S, K): the K successive teacher frames whose common center is nearest to the student frame's, of two
            equally near ones the earlier; `NO_FRAME` where there is none.

        Raises:
            AlignmentError: more than `max_missing_frames` student frames would be without a target.
        """
        span = self.frames_per_target
        frame = torch.arange(num_student_frames) - self.delay_frames
        time_s = self.student_offset_s + frame.double() / self.student_rate_hz
        first = (
            ((time_s - self.teacher_offset_s) * self.teacher_rate_hz - (span - 1) / 2 + 0.5 - 1e-6)
            .floor()
            .long()
        )
        index_SK = first.unsqueeze(1) + torch.arange(span)
        known_SK = (index_SK >= 0) & (index_SK < num_teacher_frames)
        missing = int((~known_SK.all(dim=1)).sum())
        if missing > self.max_missing_frames + self.delay_frames:
            raise AlignmentError(
                f"{num_teacher_frames} teacher frames leave {missing} of {num_student_frames} student frames "
                f"without a target, more than distill.max_missing_frames ({self.max_missing_frames}): the "
                "targets are of other audio, or the frame rates are wrong; extract the table again"
            )
        return index_SK.masked_fill(~known_SK, NO_FRAME)

    def __call__(self, codes_TN: Tensor, num_student_frames: int) -> Tensor:
        """Codes to targets, -100 where there is none; a student frame may lack some of its teacher frames.

        Args:
            codes_TN: uint8 (T, N).
            num_student_frames: S.

        Returns:
            int64 (S, N * frames_per_target), the codes of one teacher frame after the other.

        Raises:
            AlignmentError: as of `index`.
        """
        index_SK = self.index(codes_TN.shape[0], num_student_frames).to(codes_TN.device)
        known_SK = index_SK != NO_FRAME
        targets_SKN = torch.full((*index_SK.shape, codes_TN.shape[1]), IGNORE, device=codes_TN.device)
        targets_SKN[known_SK] = codes_TN[index_SK[known_SK]].long()
        return targets_SKN.flatten(1)

    def embeddings(self, x_TD: Tensor, num_student_frames: int, *, span: Span = "concat") -> Tensor:
        """Embeddings to targets, rows of NaN for student frames that lack any of their teacher frames.

        Args:
            x_TD: floats (T, D).
            num_student_frames: S.
            span: "concat" puts the K embeddings of a student frame one after the other, "mean" takes their mean.

        Returns:
            float32 (S, D * frames_per_target), or (S, D) of means.

        Raises:
            AlignmentError: as of `index`.
        """
        index_SK = self.index(x_TD.shape[0], num_student_frames).to(x_TD.device)
        known_S = (index_SK != NO_FRAME).all(dim=1)
        targets_SKD = torch.full((*index_SK.shape, x_TD.shape[1]), torch.nan, device=x_TD.device)
        targets_SKD[known_S] = x_TD[index_SK[known_S]].float()
        return targets_SKD.mean(dim=1) if span == "mean" else targets_SKD.flatten(1)
