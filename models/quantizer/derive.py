"""The weights of quantizers that follow from those of another one.

Weights are state dicts of a `Quantizer` without its id, and are never changed in place.

Shape suffixes: N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE_SPEED = 10.0
"""The learned scales enter as exp(10 * parameter): ten times their learning rate, as in the reference."""


def first_codebooks(weights: Mapping[str, Tensor], num_codebooks: int) -> dict[str, Tensor]:
    """Those of the first codebooks alone."""
    entries = num_codebooks * weights["centers"].shape[1]
    return {
        **weights,
        "to_logits.weight": weights["to_logits.weight"][:entries],
        "to_logits.bias": weights["to_logits.bias"][:entries],
        "centers": weights["centers"][:num_codebooks],
    }


def paired_codebooks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Half as many codebooks of K * K entries: entry k1 * K + k2 is the sum of entries k1 and k2 of a pair."""
    num_codebooks, size, dim = weights["centers"].shape
    pairs = num_codebooks // 2

    def pair_sums(rows_MX: Tensor) -> Tensor:
        first_and_second = rows_MX.view(pairs, 2, size, -1)
        return first_and_second[:, 0].unsqueeze(2) + first_and_second[:, 1].unsqueeze(1)

    return {
        **weights,
        "to_logits.weight": pair_sums(weights["to_logits.weight"]).view(-1, dim),
        "to_logits.bias": pair_sums(weights["to_logits.bias"]).view(-1),
        "centers": pair_sums(weights["centers"]).view(pairs, size * size, dim),
    }


def folded_scale(weights: Mapping[str, Tensor], mean_D: Tensor, scale: float) -> dict[str, Tensor]:
    """Those that do to frames x what `weights` do to (x - mean) / scale, with one scale for all channels."""
    logits_factor = (weights["logits_scale"] * SCALE_SPEED).exp() / scale
    centers_factor = (weights["centers_scale"] * SCALE_SPEED).exp() * scale
    logits_MD, bias_M = weights["to_logits.weight"], weights["to_logits.bias"]
    return {
        "to_logits.weight": logits_MD,
        "to_logits.bias": bias_M - logits_factor * (logits_MD @ mean_D),
        "logits_scale": logits_factor.log() / SCALE_SPEED,
        "centers_scale": centers_factor.log() / SCALE_SPEED,
        "centers": _moved(weights["centers"], mean_D / centers_factor),
    }


def folded_channels(weights: Mapping[str, Tensor], mean_D: Tensor, std_D: Tensor) -> dict[str, Tensor]:
    """Those that do to frames x what `weights` do to (x - mean) / std, with a scale for each channel.

    What they decode and what the classifier says is the same. The nearest sum of centers is not: a search for it
    has to weight the squared error of each channel by 1 / std^2 (`channel_weights` of a `Quantizer`).
    """
    logits_factor = (weights["logits_scale"] * SCALE_SPEED).exp()
    centers_factor = (weights["centers_scale"] * SCALE_SPEED).exp()
    logits_MD = weights["to_logits.weight"] / std_D
    return {
        **weights,
        "to_logits.weight": logits_MD,
        "to_logits.bias": weights["to_logits.bias"] - logits_factor * (logits_MD @ mean_D),
        "centers": _moved(weights["centers"] * std_D, mean_D / centers_factor),
    }


def _moved(centers_NKD: Tensor, by_D: Tensor) -> Tensor:
    """Moved in the first codebook, which every sum of the first codebooks has."""
    return torch.cat([centers_NKD[:1] + by_D, centers_NKD[1:]])
