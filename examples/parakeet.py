"""transformers' Parakeet (Fast Conformer, arXiv 2305.05084) as students, from random weights: by CTC, and by RNN-T.

The models are transformers' own and know nothing of distillation, which reads their layers by hooks. Both hear a whole
utterance; layers are never dropped as a whole, since the one that predicts codes has to run in every pass.

Shape suffixes: B utterances, T log-mel frames, F mel bins, S the student's frames, U units, V different units, J joiner
channels.
"""

from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetForCTC,
    ParakeetForRNNT,
    ParakeetRNNTConfig,
)

from mvqkd.models.decoding.greedy import BLANK
from mvqkd.models.students.base import Student, StudentFrames, StudentLoss
from mvqkd.models.students.ctc import CtcStudent

MOST_UNITS_PER_FRAME = 4


class _Parakeet(Student):
    """What both have in common: `model.encoder`, and when its frames are.

    `model` is set by the subclass. A subsampling of 8 is Parakeet's own; with characters as units 12.5 frames a second
    are too few for CTC, so take 4 then, or SentencePiece pieces.
    """

    model: Any

    def __init__(self, encoder: dict[str, Any]) -> None:
        super().__init__()
        self.encoder_config = ParakeetEncoderConfig(**encoder, layerdrop=0.0)
        # Its convolutions are padded in front, so frame 0 is at the beginning of the audio.
        self.frames = StudentFrames(
            frame_rate_hz=self.feature_rate_hz / self.encoder_config.subsampling_factor
        )

    @property
    def channels(self) -> int:
        """See `Student`."""
        return int(self.encoder_config.hidden_size)

    @property
    def layers(self) -> nn.ModuleList:
        """See `Student`; not an attribute, or the weights would be stored under two names."""
        layers: nn.ModuleList = self.model.encoder.layers
        return layers

    def num_frames(self, num_feature_frames: int) -> int:
        """See `Student.num_frames`: each convolution halves, rounding up."""
        return -(-num_feature_frames // self.encoder_config.subsampling_factor)

    def encoded(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's frames (B, S, C), and int64 (B,): how many count."""
        mask_BT = torch.arange(features_BTF.shape[1], device=lengths_B.device) < lengths_B.unsqueeze(1)
        out = self.model.encoder(input_features=features_BTF, attention_mask=mask_BT)
        return out.last_hidden_state, out.attention_mask.sum(-1)

    def encode(self, features_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """See `Student.encode`."""
        return self.encoded(features_BTF, lengths_B)[1]


class ParakeetCtc(_Parakeet, CtcStudent):
    """`ParakeetForCTC`; `encoder` are the keys of `ParakeetEncoderConfig`."""

    def __init__(self, num_units: int, **encoder: Any) -> None:
        super().__init__(encoder)
        config = ParakeetCTCConfig(
            vocab_size=num_units, pad_token_id=BLANK, encoder_config=self.encoder_config.to_dict()
        )
        self.model = ParakeetForCTC(config)

    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `CtcStudent.logits`."""
        encoded_BSC, frame_lengths_B = self.encoded(features_BTF, lengths_B)
        return self.model.ctc_head(encoded_BSC), frame_lengths_B


class ParakeetRnnt(_Parakeet):
    """`ParakeetForRNNT`; `decoder_dim` is of its LSTM and joiner, `encoder` as above."""

    def __init__(self, num_units: int, *, decoder_dim: int = 64, **encoder: Any) -> None:
        super().__init__(encoder)
        config = ParakeetRNNTConfig(
            vocab_size=num_units,
            blank_token_id=BLANK,
            pad_token_id=BLANK,
            decoder_hidden_size=decoder_dim,
            num_decoder_layers=1,
            encoder_config=self.encoder_config.to_dict(),
        )
        self.model = ParakeetForRNNT(config)

    def loss(
        self, features_BTF: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> StudentLoss:
        """See `Student.loss`."""
        encoded_BSC, frame_lengths_B = self.encoded(features_BTF, lengths_B)
        encoded_BSJ = self.model.encoder_projector(encoded_BSC)
        predicted_BUJ = self.model.decoder(F.pad(units_BU, (1, 0), value=BLANK))
        logits_BSUV = self.model.joint(
            encoder_hidden_states=encoded_BSJ.unsqueeze(2), decoder_hidden_states=predicted_BUJ.unsqueeze(1)
        )
        total = torchaudio.functional.rnnt_loss(
            logits_BSUV.float(),
            units_BU.int(),
            frame_lengths_B.int(),
            unit_lengths_B.int(),
            blank=BLANK,
            reduction="sum",
        )
        return StudentLoss(
            total=total, parts={"transducer": total.detach()}, num_frames=int(frame_lengths_B.sum())
        )

    @torch.inference_mode()
    def greedy(self, features_BTF: Tensor, lengths_B: Tensor) -> list[list[int]]:
        """See `Student.greedy`."""
        encoded_BSC, frame_lengths_B = self.encoded(features_BTF, lengths_B)
        encoded_BSJ = self.model.encoder_projector(encoded_BSC)
        return [
            self._search(encoded_SJ[:length])
            for encoded_SJ, length in zip(encoded_BSJ, frame_lengths_B.tolist(), strict=True)
        ]

    def _search(self, encoded_SJ: Tensor) -> list[int]:
        units: list[int] = []
        predicted_J, state = self._predict(BLANK, None)
        for encoded_J in encoded_SJ:
            for _ in range(MOST_UNITS_PER_FRAME):
                logits_V = self.model.joint(
                    encoder_hidden_states=encoded_J, decoder_hidden_states=predicted_J
                )
                unit = int(logits_V.argmax())
                if unit == BLANK:
                    break
                units.append(unit)
                predicted_J, state = self._predict(unit, state)
        return units

    def _predict(
        self, unit: int, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The prediction network after one more unit, and its state."""
        decoder = self.model.decoder
        weight = decoder.embedding.weight
        embedded_BUJ = decoder.embedding(torch.tensor([[unit]], device=weight.device))
        output_BUJ, state = decoder.lstm(embedded_BUJ, state)
        return decoder.decoder_projector(output_BUJ)[0, 0], state
