"""The Conformer encoder, built from torchaudio's Conformer layers.

Shape suffixes: B utterances, T feature frames or encoder frames, F mel bins, D encoder channels.
"""

import torch
from torch import Tensor, nn
from torchaudio.models.conformer import ConformerLayer

from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.encoded import Encoder
from mvqkd.models.students.subsampling import Subsampling, subsampled_length


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
        if self.training:
            keep_BT = ~padding_BT
            out_BTD = torch.zeros_like(convolved_BTD)
            out_BTD[keep_BT] = batch_norm(convolved_BTD[keep_BT])
            out_BDT = out_BTD.transpose(1, 2)
        else:
            # Each frame for itself; without a choice of frames by their values, which no exporter knows.
            out_BDT = batch_norm(convolved_BTD.transpose(1, 2))
        for module in rest:
            out_BDT = module(out_BDT)
        return out_BDT.transpose(1, 2)


class ConformerEncoder(Encoder):
    """Subsampling and a stack of torchaudio's Conformer layers."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.subsampling = Subsampling(config.encoder_dim, features=config.features)
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

    def forward(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            features_BTF: float32 (B, T, 80), padded with zeros.
            lengths_B: int64 mel frames of each utterance, at least 7.

        Returns:
            (B, T', D) encodings and int64 (B,) lengths at 25 Hz.
        """
        x_BTD = self.dropout(self.subsampling(features_BTF))
        out_lengths_B = subsampled_length(lengths_B)
        padding_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) >= out_lengths_B.unsqueeze(1)
        x_TBD = x_BTD.transpose(0, 1)
        for layer in self.layers:
            x_TBD = layer(x_TBD, padding_BT)
        return x_TBD.transpose(0, 1), out_lengths_B

    def layer_output(self, raw: object) -> Tensor:
        """(S, B, D) of a Conformer layer to (B, S, D)."""
        assert isinstance(raw, Tensor)
        return raw.transpose(0, 1)
