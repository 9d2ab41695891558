"""A teacher that runs in the training step: its embeddings, or codes of them, of the audio as the student gets it.

Shape suffixes: T teacher frames, S student frames, N codebooks, D embedding dimension.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mvqkd.models.alignment import FrameAlignment
from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.models.quantizer import Coder, Quantizer
from mvqkd.models.students.base import StudentFrames
from mvqkd.models.teachers import Teacher
from mvqkd.storage.location import Location
from mvqkd.workers.distill.settings import TargetConfig
from mvqkd.workers.quantizer_record import load_quantizer
from mvqkd.workers.teacher import TeacherConfig, open_teacher


class LiveTeacher:
    """Targets made in the training step, nothing of which is stored: what codes are to be compared with.

    Args:
        teacher: hears each utterance without noise or masks.
        alignment: teacher frames to student frames.
        quantizer: of its embeddings; the embeddings themselves are the targets without one.
    """

    def __init__(
        self, teacher: Teacher, alignment: FrameAlignment, *, quantizer: Quantizer | None = None
    ) -> None:
        self._teacher, self._alignment = teacher, alignment
        self._coder = None if quantizer is None else Coder(quantizer)
        span = alignment.frames_per_target
        if quantizer is None:
            self.spec = TargetSpec(kind="embeddings", dim=teacher.info.dim * span)
        else:
            self.spec = TargetSpec(
                kind="codes",
                num_codebooks=quantizer.num_codebooks * span,
                codebook_size=quantizer.codebook_size,
            )

    @torch.no_grad()
    def targets(self, waveforms: Sequence[Tensor], num_frames: Sequence[int]) -> list[Tensor]:
        """Targets of utterances, (S, width of the spec) each, on the teacher's device.

        Args:
            waveforms: float32 (num_samples,) at the teacher's rate.
            num_frames: of the student, for each of them.

        Raises:
            AlignmentError: the frames of an utterance do not belong together.
            NonFiniteEmbeddingError: the teacher gave NaN or infinity.
        """
        embeddings = self._teacher.encode(waveforms)
        if self._coder is None:
            return [
                self._alignment.embeddings(x_TD, wanted)
                for x_TD, wanted in zip(embeddings, num_frames, strict=True)
            ]
        lengths = [len(x_TD) for x_TD in embeddings]
        codes_FN, _ = self._coder(torch.cat(embeddings), torch.tensor(lengths, device=embeddings[0].device))
        return [
            self._alignment(codes_TN, wanted)
            for codes_TN, wanted in zip(codes_FN.split(lengths), num_frames, strict=True)
        ]


def open_live_teacher(
    teacher: TeacherConfig,
    wanted: TargetConfig,
    frames: StudentFrames,
    quantizer: Location | None,
    *,
    options: Mapping[str, str],
    device: torch.device,
) -> LiveTeacher:
    """Load the run's teacher, and its quantizer where codes are wanted.

    Raises:
        ValueError: it takes audio of another rate than the student.
        ArtifactError: there is no quantizer.
    """
    loaded = open_teacher(teacher.model_copy(update={"device": device.type}), options=options)
    info = loaded.info
    if info.sample_rate_hz != frames.sample_rate_hz:
        raise ValueError(
            f"distill.targets: the teacher takes {info.sample_rate_hz} Hz and the student {frames.sample_rate_hz} Hz, "
            "but both hear the same audio where no table is named; set student.sample_rate_hz, or extract a table"
        )
    alignment = FrameAlignment(
        teacher_rate_hz=info.frame_rate_hz,
        student_rate_hz=frames.frame_rate_hz,
        teacher_offset_s=info.frame_offset_s,
        student_offset_s=frames.frame_offset_s,
        delay_frames=wanted.delay_frames,
        max_missing_frames=wanted.max_missing_frames,
    )
    if not wanted.quantized:
        return LiveTeacher(loaded, alignment)
    assert quantizer is not None
    return LiveTeacher(loaded, alignment, quantizer=load_quantizer(quantizer)[0].to(device))
