"""What a quantizer is judged by."""

import torch
from torch import Tensor


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
    x_BD = x.detach().double().reshape(-1, x.shape[-1])
    error = (x_BD - x_hat.detach().double().reshape(x_BD.shape)).square().sum()
    mean_D = x_BD.mean(dim=0) if mean is None else mean.detach().double()
    return float(error / ((x_BD - mean_D).square().sum() + 1e-20))


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
