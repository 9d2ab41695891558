"""The CTC loss, and students that are trained by it alone.

Shape suffixes: B utterances, T feature frames, F feature bins, S the student's frames, D encoder
channels, U units, V different units.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvqkd.models.decoding.beam import beam_ctc
from mvqkd.models.decoding.greedy import BLANK, greedy_ctc
from mvqkd.models.decoding.streaming import CtcSearch
from mvqkd.models.students.base import Student, StudentLoss
from mvqkd.models.students.config import EncoderConfig
from mvqkd.models.students.encoded import EncodedStudent, Encoder


class CtcStudent(Student):
    """A student whose output is one unit or blank for each frame; a subclass gives `logits`."""

    @abstractmethod
    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, V) of a padded batch, unit 0 being blank, and int64 (B,): how many frames count."""

    def loss(
        self, features_BTF: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> StudentLoss:
        """See `Student.loss`."""
        logits_BSV, frame_lengths_B = self.logits(features_BTF, lengths_B)
        ctc = ctc_loss(logits_BSV, frame_lengths_B, units_BU, unit_lengths_B)
        return StudentLoss(total=ctc, parts={"ctc": ctc.detach()}, num_frames=int(frame_lengths_B.sum()))

    def encode(self, features_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """See `Student.encode`."""
        return self.logits(features_BTF, lengths_B)[1]

    @torch.inference_mode()
    def greedy(self, features_BTF: Tensor, lengths_B: Tensor) -> list[list[int]]:
        """See `Student.greedy`."""
        return greedy_ctc(*self.logits(features_BTF, lengths_B))

    @torch.inference_mode()
    def beam(
        self, features_BTF: Tensor, lengths_B: Tensor, *, beam: int, modified: bool = False
    ) -> list[list[int]]:
        """See `Student.beam` and `beam_ctc`; a frame never has more than one unit here."""
        return [best[0].units for best in beam_ctc(*self.logits(features_BTF, lengths_B), beam=beam)]


class EncodedCtc(EncodedStudent, CtcStudent):
    """An encoder of ours with one linear layer to the units.

    Args:
        encoder: of any kind.
        config: its sizes.
        num_units: different units, blank among them.
    """

    def __init__(self, encoder: Encoder, config: EncoderConfig, num_units: int) -> None:
        super().__init__(encoder, config, num_units)
        self.output = nn.Linear(config.encoder_dim, num_units)

    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `CtcStudent.logits`."""
        encoded_BSD, frame_lengths_B = self.encoder(features_BTF, lengths_B)
        return self.output(encoded_BSD), frame_lengths_B

    def open_search(self) -> CtcSearch:
        """Greedy search through the frames of a stream."""
        return CtcSearch(self.output)


def ctc_loss(logits_BSV: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor) -> Tensor:
    """CTC loss in nats, summed over the batch (Graves et al. 2006); impossible alignments count as 0."""
    return F.ctc_loss(
        logits_BSV.float().log_softmax(-1).transpose(0, 1),
        units_BU,
        lengths_B,
        unit_lengths_B,
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )
