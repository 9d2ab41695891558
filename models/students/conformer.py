"""The student: a Conformer transducer built from torchaudio's Conformer layers and `rnnt_loss`."""

from typing import overload

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models.conformer import ConformerLayer

from mvqkd.models.features import HOP_SAMPLES, NUM_MEL_BINS
from mvqkd.models.students.config import StudentConfig

BLANK = 0
MIN_SAMPLES = 6 * HOP_SAMPLES
"""Waveform samples that give one encoder frame (7 mel frames)."""


@overload
def subsampled_length(num_mel_frames: int) -> int: ...


@overload
def subsampled_length(num_mel_frames: Tensor) -> Tensor: ...


def subsampled_length(num_mel_frames: Tensor | int) -> Tensor | int:
    """Encoder frames of an utterance of `num_mel_frames`; 0 when it is shorter than 7 mel frames."""
    if isinstance(num_mel_frames, int):
        return max(0, ((num_mel_frames - 1) // 2 - 1) // 2)
    return (((num_mel_frames - 1) // 2 - 1) // 2).clamp_min(0)


class Subsampling(nn.Module):
    """80 mel bins at 100 Hz to `dim` at 25 Hz by two strided convolutions (no padding in time)."""

    def __init__(self, dim: int, channels: int = 32) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, stride=2),
            nn.SiLU(),
        )
        bins = subsampled_length(NUM_MEL_BINS)
        self.project = nn.Linear(channels * bins, dim)

    def forward(self, features_BTF: Tensor) -> Tensor:
        """(B, T, 80) to (B, subsampled_length(T), dim)."""
        x_BCTF = self.conv(features_BTF.unsqueeze(1))
        return self.project(x_BCTF.permute(0, 2, 1, 3).flatten(2))


class MaskedConformerLayer(ConformerLayer):
    """torchaudio's Conformer layer whose convolution module does not see padding.

    In torchaudio the layer norm's bias and the pointwise convolution give padding frames values, which the
    depthwise convolution carries into the last frames of the utterance, and the batch norm counts them: the
    result depends on the length of the other utterances. Here they are zeroed before the depthwise
    convolution and left out of the batch norm. Parameters and their names are torchaudio's.
    """

    def forward(self, x_TBD: Tensor, padding_BT: Tensor) -> Tensor:
        """(T, B, D) and the (B, T) mask, True at padding, to (T, B, D); padding frames hold anything."""
        x_TBD = x_TBD + 0.5 * self.ffn1(x_TBD)
        normed_TBD = self.self_attn_layer_norm(x_TBD)
        attended_TBD, _ = self.self_attn(
            normed_TBD, normed_TBD, normed_TBD, key_padding_mask=padding_BT, need_weights=False
        )
        x_TBD = x_TBD + self.self_attn_dropout(attended_TBD)
        x_TBD = x_TBD + self._convolve(x_TBD.transpose(0, 1), padding_BT).transpose(0, 1)
        x_TBD = x_TBD + 0.5 * self.ffn2(x_TBD)
        return self.final_layer_norm(x_TBD)

    def _convolve(self, x_BTD: Tensor, padding_BT: Tensor) -> Tensor:
        pointwise, glu, depthwise, batch_norm, *rest = self.conv_module.sequential
        gated_BDT = glu(pointwise(self.conv_module.layer_norm(x_BTD).transpose(1, 2)))
        convolved_BTD = depthwise(gated_BDT.masked_fill(padding_BT.unsqueeze(1), 0.0)).transpose(1, 2)
        keep_BT = ~padding_BT
        out_BTD = torch.zeros_like(convolved_BTD)
        out_BTD[keep_BT] = batch_norm(convolved_BTD[keep_BT])
        out_BDT = out_BTD.transpose(1, 2)
        for module in rest:
            out_BDT = module(out_BDT)
        return out_BDT.transpose(1, 2)


class ConformerEncoder(nn.Module):
    """Subsampling and a stack of torchaudio's Conformer layers."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.subsampling = Subsampling(config.encoder_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            MaskedConformerLayer(
                input_dim=config.encoder_dim,
                ffn_dim=config.ffn_dim,
                num_attention_heads=config.num_heads,
                depthwise_conv_kernel_size=config.conv_kernel,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )

    def forward(
        self, features_BTF: Tensor, lengths_B: Tensor, *, tap_layer: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode a padded batch.

        Args:
            features_BTF: float32 (B, T, 80), padded with zeros.
            lengths_B: int64 mel frames of each utterance, at least 7.
            tap_layer: also return the output of this layer, counted from 1.

        Returns:
            (B, T', D) encodings, int64 (B,) lengths at 25 Hz, and the tapped (B, T', D) or None.
        """
        x_BTD = self.dropout(self.subsampling(features_BTF))
        out_lengths_B = subsampled_length(lengths_B)
        padding_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) >= out_lengths_B.unsqueeze(1)
        x_TBD, tapped_BTD = x_BTD.transpose(0, 1), None
        for number, layer in enumerate(self.layers, start=1):
            x_TBD = layer(x_TBD, padding_BT)
            if number == tap_layer:
                tapped_BTD = x_TBD.transpose(0, 1)
        return x_TBD.transpose(0, 1), out_lengths_B, tapped_BTD


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


class ConformerTransducer(nn.Module):
    """Conformer encoder, stateless predictor, joiner; unit 0 is blank."""

    def __init__(self, config: StudentConfig, num_units: int, *, with_ctc: bool = False) -> None:
        super().__init__()
        self.config = config
        self.num_units = num_units
        self.encoder = ConformerEncoder(config)
        self.predictor = Predictor(num_units, config.predictor_dim)
        self.encoder_projection = nn.Linear(config.encoder_dim, config.joiner_dim)
        self.predictor_projection = nn.Linear(config.predictor_dim, config.joiner_dim)
        self.output = nn.Linear(config.joiner_dim, num_units)
        self.ctc = nn.Linear(config.encoder_dim, num_units) if with_ctc else None

    def transducer_loss(
        self, encoded_BTD: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> Tensor:
        """Transducer loss in nats, summed over the batch (Graves 2012).

        Args:
            units_BU: int64 (B, U), padded with anything; `unit_lengths_B` says how many count.
        """
        history_BU = F.pad(units_BU, (Predictor.CONTEXT, 0), value=BLANK)
        predicted_BUJ = self.predictor_projection(self.predictor(history_BU))
        encoded_BTJ = self.encoder_projection(encoded_BTD)
        joined_BTUJ = torch.tanh(encoded_BTJ.unsqueeze(2) + predicted_BUJ.unsqueeze(1))
        return torchaudio.functional.rnnt_loss(
            self.output(joined_BTUJ).float(),
            units_BU.int(),
            lengths_B.int(),
            unit_lengths_B.int(),
            blank=BLANK,
            reduction="sum",
        )

    def ctc_loss(
        self, encoded_BTD: Tensor, lengths_B: Tensor, units_BU: Tensor, unit_lengths_B: Tensor
    ) -> Tensor:
        """CTC loss of the auxiliary head in nats, summed over the batch; impossible alignments count as 0."""
        assert self.ctc is not None, "built without the CTC head"
        log_probs_TBV = self.ctc(encoded_BTD).float().log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(
            log_probs_TBV,
            units_BU,
            lengths_B,
            unit_lengths_B,
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )

    @torch.inference_mode()
    def greedy(
        self, features_BTF: Tensor, lengths_B: Tensor, *, max_units_per_frame: int = 4
    ) -> list[list[int]]:
        """The most probable unit at every step, for each utterance of a padded batch.

        Args:
            features_BTF: float32 (B, T, 80); lengths_B: int64 mel frames.

        Returns:
            One list of units (without blanks) for each utterance.
        """
        encoded_BTD, out_lengths_B, _ = self.encoder(features_BTF, lengths_B)
        encoded_BTJ = self.encoder_projection(encoded_BTD)
        batch = encoded_BTJ.shape[0]
        history_BC = torch.full(
            (batch, Predictor.CONTEXT), BLANK, dtype=torch.long, device=encoded_BTJ.device
        )
        predicted_BJ = self.predictor_projection(self.predictor(history_BC))[:, 0]
        hypotheses: list[list[int]] = [[] for _ in range(batch)]
        for frame in range(encoded_BTJ.shape[1]):
            open_B = frame < out_lengths_B
            for _ in range(max_units_per_frame):
                units_B = self.output(torch.tanh(encoded_BTJ[:, frame] + predicted_BJ)).argmax(-1)
                open_B = open_B & (units_B != BLANK)
                if not open_B.any():
                    break
                for row in open_B.nonzero().flatten().tolist():
                    hypotheses[row].append(int(units_B[row]))
                shifted_BC = torch.cat([history_BC[:, 1:], units_B.unsqueeze(1)], dim=1)
                history_BC = torch.where(open_B.unsqueeze(1), shifted_BC, history_BC)
                predicted_BJ = self.predictor_projection(self.predictor(history_BC))[:, 0]
        return hypotheses
