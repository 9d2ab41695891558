"""Transducers: encoder, stateless predictor, joiner, and a CTC head beside them if wanted.

Shape suffixes: B utterances, T feature frames, F mel bins, S encoder frames, D encoder channels, J joiner channels,
U units, C units of context.
"""

import math

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from mvqkd.models.decoding.beam import beam_transducer, modified_beam_transducer
from mvqkd.models.decoding.greedy import BLANK, greedy_transducer
from mvqkd.models.decoding.streaming import TransducerSearch
from mvqkd.models.students.base import StudentLoss
from mvqkd.models.students.config import EncoderConfig, StudentConfig
from mvqkd.models.students.conformer import ConformerEncoder
from mvqkd.models.students.ctc import ctc_loss
from mvqkd.models.students.emformer import EmformerEncoder
from mvqkd.models.students.encoded import EncodedStudent, Encoder
from mvqkd.models.students.kinds import EmformerConfig


class Predictor(nn.Module):
    """Stateless prediction network: the last two units (Ghodsi et al. 2020)."""

    CONTEXT = 2

    def __init__(self, num_units: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_units, dim)
        self.conv = nn.Conv1d(dim, dim, self.CONTEXT, groups=max(1, dim // 4))

    def forward(self, units_BU: Tensor) -> Tensor:
        """int64 (B, CONTEXT - 1 + U) units to (B, U, dim)."""
        return F.relu(self.conv(self.embedding(units_BU).transpose(1, 2)).transpose(1, 2))


class Transducer(EncodedStudent):
    """Encoder, stateless predictor, joiner; unit 0 is blank.

    Args:
        encoder: of any kind.
        config: its sizes, and those of predictor and joiner.
        num_units: different units, blank among them.
        ctc_scale: factor of an auxiliary CTC loss on the encoder's output.
        with_ctc: whether there is a head for that loss; by default where the factor is above 0. A student to decode
            with, whose weights have such a head, is built with it.

    Raises:
        ValueError: the factor is no number from 0, or has no head.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: EncoderConfig,
        num_units: int,
        *,
        ctc_scale: float = 0.0,
        with_ctc: bool | None = None,
    ) -> None:
        super().__init__(encoder, config, num_units)
        if not 0 <= ctc_scale < math.inf:
            raise ValueError(f"ctc_scale {ctc_scale:g} must be a number from 0")
        with_ctc = ctc_scale > 0 if with_ctc is None else with_ctc
        if ctc_scale and not with_ctc:
            raise ValueError(f"ctc_scale {ctc_scale:g} needs a student with a CTC head (with_ctc=True)")
        self.ctc_scale = ctc_scale
        self.predictor = Predictor(num_units, config.predictor_dim)
        self.encoder_projection = nn.Linear(config.encoder_dim, config.joiner_dim)
        self.predictor_projection = nn.Linear(config.predictor_dim, config.joiner_dim)
        self.output = nn.Linear(config.joiner_dim, num_units)
        self.ctc = nn.Linear(config.encoder_dim, num_units) if with_ctc else None

    def loss(
        self, features_BTF: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> StudentLoss:
        """See `Student.loss`; the parts are `transducer` and, where it counts, `ctc`."""
        encoded_BSD, frame_lengths_B = self.encoder(features_BTF, lengths_B)
        total = self.transducer_loss(encoded_BSD, frame_lengths_B, units_BU, unit_lengths_B)
        parts = {"transducer": total.detach()}
        if self.ctc_scale:
            ctc = self.ctc_loss(encoded_BSD, frame_lengths_B, units_BU, unit_lengths_B)
            total = total + self.ctc_scale * ctc
            parts["ctc"] = ctc.detach()
        return StudentLoss(total=total, parts=parts, num_frames=int(frame_lengths_B.sum()))

    def encode(self, features_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """See `Student.encode`."""
        _, frame_lengths_B = self.encoder(features_BTF, lengths_B)
        return frame_lengths_B

    def transducer_loss(
        self, encoded_BSD: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> Tensor:
        """Transducer loss in nats, summed over the batch (Graves 2012).

        Args:
            units_BU: int64 (B, U), padded with anything; `unit_lengths_B` says how many count.
        """
        history_BU = F.pad(units_BU, (Predictor.CONTEXT, 0), value=BLANK)
        predicted_BUJ = self.predictor_projection(self.predictor(history_BU))
        encoded_BSJ = self.encoder_projection(encoded_BSD)
        logits_BSUV = self.join(encoded_BSJ.unsqueeze(2), predicted_BUJ.unsqueeze(1))
        return torchaudio.functional.rnnt_loss(
            logits_BSUV.float(),
            units_BU.int(),
            lengths_B.int(),
            unit_lengths_B.int(),
            blank=BLANK,
            reduction="sum",
        )

    def ctc_loss(
        self, encoded_BSD: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> Tensor:
        """CTC loss of the auxiliary head in nats, summed over the batch; impossible alignments count as 0."""
        assert self.ctc is not None, "built without the CTC head"
        return ctc_loss(self.ctc(encoded_BSD), lengths_B, units_BU, unit_lengths_B)

    @torch.inference_mode()
    def greedy(
        self, features_BTF: Tensor, lengths_B: Tensor, *, max_units_per_frame: int = 4
    ) -> list[list[int]]:
        """See `Student.greedy` and `greedy_transducer`."""
        encoded_BSD, frame_lengths_B = self.encoder(features_BTF, lengths_B)
        return greedy_transducer(
            self.encoder_projection(encoded_BSD),
            frame_lengths_B,
            predict=self.predict,
            join=self.join,
            context=Predictor.CONTEXT,
            max_units_per_frame=max_units_per_frame,
        )

    def open_search(self) -> TransducerSearch:
        """Greedy search through the frames of a stream."""
        return TransducerSearch(
            project=self.encoder_projection,
            predict=self.predict,
            join=self.join,
            context=Predictor.CONTEXT,
            device=self.output.weight.device,
        )

    @torch.inference_mode()
    def beam(
        self, features_BTF: Tensor, lengths_B: Tensor, *, beam: int, modified: bool = False
    ) -> list[list[int]]:
        """See `Student.beam` and `beam_transducer`."""
        encoded_BSD, frame_lengths_B = self.encoder(features_BTF, lengths_B)
        search = modified_beam_transducer if modified else beam_transducer
        found = search(
            self.encoder_projection(encoded_BSD),
            frame_lengths_B,
            predict=self.predict,
            join=self.join,
            context=Predictor.CONTEXT,
            beam=beam,
        )
        return [hypotheses[0].units for hypotheses in found]

    def predict(self, history_BC: Tensor) -> Tensor:
        """int64 (B, C) last units to what the joiner takes: (B, J)."""
        return self.predictor_projection(self.predictor(history_BC))[:, 0]

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Projected outputs (*, J) of encoder and predictor to logits (*, num_units)."""
        return self.output(torch.tanh(encoded + predicted))


class ConformerTransducer(Transducer):
    """A transducer with a Conformer; see there for the arguments."""

    def __init__(
        self,
        config: StudentConfig,
        num_units: int,
        *,
        ctc_scale: float = 0.0,
        with_ctc: bool | None = None,
    ) -> None:
        super().__init__(ConformerEncoder(config), config, num_units, ctc_scale=ctc_scale, with_ctc=with_ctc)


class EmformerTransducer(Transducer):
    """A transducer with an Emformer, which recognizes while it hears; see there for the arguments."""

    def __init__(
        self,
        config: EmformerConfig,
        num_units: int,
        *,
        ctc_scale: float = 0.0,
        with_ctc: bool | None = None,
    ) -> None:
        super().__init__(EmformerEncoder(config), config, num_units, ctc_scale=ctc_scale, with_ctc=with_ctc)
