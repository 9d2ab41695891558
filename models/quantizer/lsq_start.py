"""Where a fit by least squares begins: residual k-means, and how the prefixes of an ordered code are weighted.

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

import torch
from torch import Tensor

START_FRAMES_PER_ENTRY = 64
_START_ITERATIONS = 6


def residual_kmeans(
    x_BD: Tensor, num_codebooks: int, codebook_size: int, generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """Centers (M, D), each codebook fitted to what those before it leave, and the squared error after each."""
    wanted = START_FRAMES_PER_ENTRY * codebook_size
    rest_BD = x_BD[torch.randperm(len(x_BD), generator=generator)[:wanted].to(x_BD.device)].clone()
    centers, errors = [], []
    for _ in range(num_codebooks):
        drawn = torch.randint(len(rest_BD), (codebook_size,), generator=generator)
        if len(rest_BD) >= codebook_size:
            drawn = torch.randperm(len(rest_BD), generator=generator)[:codebook_size]
        centers_KD = rest_BD[drawn.to(x_BD.device)].clone()
        for iteration in range(_START_ITERATIONS + 1):
            cost_BK = torch.addmm(centers_KD.square().sum(dim=1), rest_BD, centers_KD.t(), alpha=-2)
            nearest_B = cost_BK.argmin(dim=1)
            if iteration < _START_ITERATIONS:
                chosen_BK = torch.nn.functional.one_hot(nearest_B, codebook_size).to(x_BD.dtype)
                counts_K1 = chosen_BK.sum(dim=0).unsqueeze(1)
                means_KD = chosen_BK.t() @ rest_BD / counts_K1.clamp(min=1)
                centers_KD = torch.where(counts_K1 > 0, means_KD, centers_KD)
        rest_BD -= centers_KD[nearest_B]
        centers.append(centers_KD)
        errors.append(float(rest_BD.square().sum(dim=1).mean()))
    return torch.cat(centers), errors


def prefix_weights(errors_N: list[float]) -> list[float]:
    """Weights under which the errors of the first 1, 2, 4, ... and of all codebooks count alike."""
    num_codebooks = len(errors_N)
    counted = sorted(
        {2**i for i in range(num_codebooks.bit_length())} & set(range(1, num_codebooks)) | {num_codebooks}
    )
    return [
        errors_N[-1] / max(errors_N[k - 1], 1e-20) / len(counted) if k in counted else 0.0
        for k in range(1, num_codebooks + 1)
    ]
