"""What a quantizer is judged by.

Shape suffixes: B frames (utterances in `rrl_of_each`), F frames of several utterances, N codebooks, K entries per
codebook, D embedding dimension.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

ROWS_PER_BLOCK = 8192
"""Frames in float64 at a time: 84 MB of 1,280 channels."""


def rrl(x: Tensor, x_hat: Tensor, mean: Tensor | None = None) -> float:
    """Relative reconstruction loss: sum ||x - x_hat||^2 / sum ||x - mean||^2, summed in float64.

    0 is exact, 1 is what the mean alone would reach.

    Args:
        x: frames, (*, D), any float dtype.
        x_hat: their reconstructions, same shape.
        mean: (D,). `multi_quantization` takes the mean of the training data as its codebooks have it
            (`Quantizer.get_data_mean()`); without one, the mean of `x` itself is taken, which is the
            stricter figure, and the one to compare quantizers by.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}; they must be equal")
    x_BD = x.detach().reshape(-1, x.shape[-1])
    mean_D = mean_frame(x_BD) if mean is None else mean.detach().double()
    blocks = zip(
        x_BD.split(ROWS_PER_BLOCK), x_hat.detach().reshape(x_BD.shape).split(ROWS_PER_BLOCK), strict=True
    )
    return rrl_of_blocks(blocks, mean_D)


def mean_frame(x_BD: Tensor) -> Tensor:
    """The mean of frames (B, D) of any float dtype, summed in float64: (D,) float64."""
    sums = [block.double().sum(dim=0) for block in x_BD.split(ROWS_PER_BLOCK)]
    return torch.stack(sums).sum(dim=0) / len(x_BD)


def rrl_of_blocks(blocks: Iterable[tuple[Tensor, Tensor]], mean_D: Tensor) -> float:
    """The RRL over blocks of frames and their reconstructions, (B, D) each, that need not exist all at once.

    Args:
        mean_D: float64 (D,).
    """
    error = variance = torch.zeros((), dtype=torch.float64, device=mean_D.device)
    for x_BD, x_hat_BD in blocks:
        x_BD = x_BD.detach().double()
        error = error + (x_BD - x_hat_BD.detach().double()).square().sum()
        variance = variance + (x_BD - mean_D).square().sum()
    return float(error / (variance + 1e-20))


def rrl_of_each(x_FD: Tensor, x_hat_FD: Tensor, lengths_B: Tensor, mean_D: Tensor) -> Tensor:
    """The `rrl` of each of several utterances, float64 (B,); on CUDA the host does not wait for it.

    Each frame's error is summed in float32, which rounds the seventh digit, and frames in float64.

    Args:
        x_FD: frames of all utterances, one after the other, float32.
        x_hat_FD: their reconstructions.
        lengths_B: int64, frames of each utterance; their sum must be F, which is not checked.
        mean_D: of the training data.
    """
    return rrl_of_sums(*sums_of_frames(x_FD, x_hat_FD, mean_D), lengths_B)


def sums_of_frames(x_FD: Tensor, x_hat_FD: Tensor, mean_D: Tensor) -> tuple[Tensor, Tensor]:
    """||x - x_hat||^2 and ||x - mean||^2 of each frame, (F,) both."""
    error_F = (x_FD - x_hat_FD).square_().sum(dim=1)
    return error_F, (x_FD - mean_D).square_().sum(dim=1)


def rrl_of_sums(error_F: Tensor, variance_F: Tensor, lengths_B: Tensor) -> Tensor:
    """The RRL of each utterance, float64 (B,), out of `sums_of_frames`."""
    error_B, variance_B = (
        torch.segment_reduce(sums_F.double(), "sum", lengths=lengths_B, unsafe=True)
        for sums_F in (error_F, variance_F)
    )
    return error_B / (variance_B + 1e-20)


def usage_entropy_bits(codes: Tensor, codebook_size: int) -> Tensor:
    """Entropy of how often each entry is used, per codebook: (N,) float64, at most log2(codebook_size).

    Args:
        codes: integer codes (*, N), one per codebook (not packed several to a byte).
        codebook_size: number of entries per codebook.

    Raises:
        ValueError: a code is negative or not below `codebook_size`, or there are no codes.
    """
    codes_BN = codes.detach().reshape(-1, codes.shape[-1]).long()
    if codes_BN.numel() == 0:
        raise ValueError("no codes to count; pass at least one frame")
    if int(codes_BN.min()) < 0 or int(codes_BN.max()) >= codebook_size:
        raise ValueError(
            f"codes lie in {int(codes_BN.min())}..{int(codes_BN.max())}, not in 0..{codebook_size - 1}; "
            "drop padding frames and check the codebook size"
        )
    num_codebooks = codes_BN.shape[1]
    shift_N = torch.arange(num_codebooks, device=codes.device) * codebook_size
    counts = torch.bincount((codes_BN + shift_N).reshape(-1), minlength=num_codebooks * codebook_size)
    share_NK = counts.view(num_codebooks, codebook_size).double() / codes_BN.shape[0]
    return torch.special.entr(share_NK).sum(dim=1) / torch.log(torch.tensor(2.0, dtype=torch.float64))


def missing_entropy(share_NK: Tensor) -> Tensor:
    """1 - entropy / log K, the mean over codebooks: 0 where all entries are used alike, 1 where one is.

    Args:
        share_NK: how often each entry is used, each row of sum 1.
    """
    share_NK = share_NK + 1e-20
    entropy = -(share_NK * share_NK.log()).sum(dim=1).mean()
    return 1.0 - entropy / math.log(share_NK.shape[1])
