"""The linear discriminant of Fisher: the classifier of a fit by least squares, in closed form.

Shape suffixes: N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

import torch
from torch import Tensor

_SHRINKAGE = 0.05


def discriminant(
    counts_M: Tensor, sums_MD: Tensor, squares_DD: Tensor, codebook_size: int
) -> tuple[Tensor, Tensor]:
    """Weight (M, D) and bias (M,) of every codebook's classifier: classes of one covariance, shrunk to a sphere.

    Args:
        counts_M: frames of each entry.
        sums_MD: the sum of these frames.
        squares_DD: the sum of all frames' outer products.
        codebook_size: K.
    """
    weight_MD, bias_M = torch.empty_like(sums_MD), torch.empty_like(counts_M)
    total = counts_M[:codebook_size].sum()
    means_MD = sums_MD / counts_M.clamp(min=1).unsqueeze(1)
    for first in range(0, len(sums_MD), codebook_size):
        own = slice(first, first + codebook_size)
        share_K1 = (counts_M[own] / total).unsqueeze(1)
        within_DD = squares_DD / total - (means_MD[own] * share_K1).t() @ means_MD[own]
        within_DD.diagonal().add_(_SHRINKAGE * within_DD.diagonal().mean())
        weight_KD = torch.linalg.solve(within_DD, means_MD[own].t()).t()
        weight_MD[own] = weight_KD
        bias_M[own] = (share_K1.squeeze(1) + 1e-6).log() - 0.5 * (weight_KD * means_MD[own]).sum(dim=1)
    return weight_MD, bias_M
