"""Student plus codebook loss: one module with one forward, so that it can be wrapped for several GPUs."""

from dataclasses import dataclass

from torch import Tensor, nn

from mvqkd.models.joint_loss import JointCodebookLoss
from mvqkd.models.students.conformer import ConformerTransducer


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses of a batch in nats. `total` is per student frame, the others are sums over the batch.

    `num_targets` counts the codes that were predicted, so `codebook / num_targets` is nats per code.
    """

    total: Tensor
    transducer: Tensor
    codebook: Tensor | None
    num_frames: int
    num_targets: int


class DistillationModel(nn.Module):
    """A student and, when codes are to be predicted, the codebook loss on one of its middle layers.

    Without distillation there is no head at all: a parameter without a gradient breaks distributed training.

    Args:
        student: the transducer.
        student_layer: encoder layer, from 1, that predicts the codes (section 3.2 of the paper).
        codebooks_per_frame: codes that one student frame predicts; 0 for no distillation.
        codebook_size: entries of a codebook.
        loss_scale: factor of the codebook loss summed over frames and codebooks.
        ctc_scale: factor of the student's auxiliary CTC loss.

    Raises:
        ValueError: the student has no such layer, or no CTC head where one is needed.
    """

    def __init__(
        self,
        student: ConformerTransducer,
        *,
        student_layer: int,
        codebooks_per_frame: int,
        codebook_size: int,
        loss_scale: float,
        ctc_scale: float = 0.0,
    ) -> None:
        super().__init__()
        num_layers = student.config.num_layers
        if codebooks_per_frame and loss_scale and not 1 <= student_layer <= num_layers:
            raise ValueError(
                f"student_layer {student_layer} is not one of the student's {num_layers} encoder layers; "
                "set distill.student_layer to one of them, counted from 1"
            )
        if ctc_scale and student.ctc is None:
            raise ValueError(f"ctc_scale {ctc_scale:g} needs a student with a CTC head (with_ctc=True)")
        self.student = student
        self.student_layer = student_layer
        self.loss_scale = loss_scale
        self.ctc_scale = ctc_scale
        self.codebook_loss = (
            JointCodebookLoss(
                predictor_channels=student.config.encoder_dim,
                num_codebooks=codebooks_per_frame,
                codebook_size=codebook_size,
                is_joint=False,
            )
            if codebooks_per_frame and loss_scale
            else None
        )

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        units_BU: Tensor,
        unit_lengths_B: Tensor,
        targets_BTK: Tensor | None,
    ) -> Losses:
        """Losses of a padded batch.

        Args:
            features_BTF: float32 (B, T, 80); lengths_B: int64 mel frames.
            units_BU: int64 (B, U); unit_lengths_B: int64.
            targets_BTK: int64 (B, T', K) codes, -100 where there is none; ignored without distillation.
        """
        tap = self.student_layer if self.codebook_loss is not None else None
        encoded_BTD, out_lengths_B, tapped_BTD = self.student.encoder(features_BTF, lengths_B, tap_layer=tap)
        transducer = self.student.transducer_loss(encoded_BTD, out_lengths_B, units_BU, unit_lengths_B)
        total = transducer
        if self.ctc_scale:
            ctc = self.student.ctc_loss(encoded_BTD, out_lengths_B, units_BU, unit_lengths_B)
            total = total + self.ctc_scale * ctc
        codebook, num_targets = None, 0
        if self.codebook_loss is not None:
            assert tapped_BTD is not None and targets_BTK is not None, "distillation needs targets"
            codebook = self.codebook_loss(tapped_BTD, targets_BTK)
            num_targets = int((targets_BTK >= 0).sum())
            total = total + self.loss_scale * codebook
        num_frames = int(out_lengths_B.sum())
        return Losses(
            total=total / max(1, num_frames),
            transducer=transducer.detach(),
            codebook=None if codebook is None else codebook.detach(),
            num_frames=num_frames,
            num_targets=num_targets,
        )
