"""WavLM's attention through torch's fused one; that of transformers 5.17 writes every score and weight to memory.

Shape suffixes: B utterances, T frames, D channels, H heads, R distances between frames.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class GatedPositionAttention(nn.Module):
    """Self-attention whose logits get a bias of the distance between two frames, gated by the later layer's frame.

    Takes the place of a ``WavLMAttention``, with its weights and in its layer, and gives the same numbers but for
    rounding. The bias goes into the fused attention as what it adds to the logits.

    Args:
        attention: whose weights are used.
    """

    def __init__(self, attention: "WavLMAttention") -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None, Tensor]:
        """States of frames to what attention adds to them.

        Args:
            hidden_states: (B, T, D).
            attention_mask: bool (B, T), True at real frames; None is all of them.
            position_bias: (H, T, T), as `PositionBias` makes it.

        Returns:
            (B, T, D); nothing, in the place of weights; and the position bias for the next layer.
        """
        own, x_BTD = self.attention, hidden_states
        assert position_bias is not None, "made once for all layers"
        shape = (*x_BTD.shape[:-1], own.num_heads, own.head_dim)
        query_BHTD, key_BHTD, value_BHTD = (
            project(x_BTD).view(shape).transpose(1, 2) for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        gate_BHT24 = own.gru_rel_pos_linear(x_BTD.view(shape).transpose(1, 2)).unflatten(-1, (2, 4))
        first_BHT1, second_BHT1 = torch.sigmoid(gate_BHT24.sum(-1)).chunk(2, dim=-1)
        gate_BHT1 = first_BHT1 * (second_BHT1 * own.gru_rel_pos_const - 1.0) + 2.0
        bias_BHTT = (gate_BHT1 * position_bias).to(query_BHTD.dtype)
        if attention_mask is not None:
            bias_BHTT.masked_fill_(~attention_mask[:, None, None, :], -torch.inf)
        sum_BHTD = nn.functional.scaled_dot_product_attention(
            query_BHTD, key_BHTD, value_BHTD, attn_mask=bias_BHTT
        )
        return own.out_proj(sum_BHTD.transpose(1, 2).flatten(2)), None, position_bias


class PositionBias:
    """The bias of the first layer's attention for any number of frames.

    ``WavLMAttention.compute_bias`` puts every pair of frames into its bucket on the host. A bucket depends on the
    distance alone, and from the greatest distance on it is the last one, so here one table holds them all.

    Args:
        attention: of the first layer.
        device: where to make the bias.
    """

    def __init__(self, attention: "WavLMAttention", device: torch.device) -> None:
        self._farthest = 2 * attention.max_distance
        distance_R = torch.arange(-self._farthest, self._farthest + 1)
        # By its own function, and on the CPU as there: a logarithm rounded otherwise may give the next bucket.
        self._bucket_R = attention._relative_positions_bucket(distance_R).to(device)
        self._embedding = attention.rel_attn_embed

    def __call__(self, frames: int) -> Tensor:
        """(H, T, T): what is added to the logit of frame i for frame j."""
        distance_R = torch.arange(1 - frames, frames, device=self._bucket_R.device)
        bucket_R = self._bucket_R[distance_R.clamp(-self._farthest, self._farthest) + self._farthest]
        # Row i of a head is a window of T distances, from -i on.
        windows_HTT = self._embedding(bucket_R).t().unfold(1, frames, 1)
        return windows_HTT.flip(1)


def use_fused_attention(encoder: nn.Module, device: torch.device) -> PositionBias:
    """Replace the attention of all layers of a ``WavLMEncoder``, in place; returns what makes their bias."""
    layers: Any = encoder.layers
    bias = PositionBias(layers[0].attention, device)
    for layer in layers:
        layer.attention = GatedPositionAttention(layer.attention)
    return bias
