"""Codes of small codebooks, several to a byte, as `multi_quantization` packs them.

Shape suffixes: B frames, N codebooks.
"""

import torch
from torch import Tensor


def packed(codes_BN: Tensor, codebook_size: int) -> Tensor:
    """Codes (B, N) as uint8 (B, N / codes per byte): two neighbours to one number while that fits a byte."""
    while codebook_size * codebook_size <= 256 and codes_BN.shape[1] % 2 == 0:
        codes_BN = codes_BN[:, ::2] + codebook_size * codes_BN[:, 1::2]
        codebook_size = codebook_size * codebook_size
    return codes_BN.to(torch.uint8)


def unpacked(codes: Tensor, num_codebooks: int, codebook_size: int) -> Tensor:
    """int64 codes (B, N) out of columns of one or several codes each.

    Raises:
        ValueError: no packing of N codes has so many columns.
    """
    columns = codes.shape[1]
    if columns == num_codebooks:
        return codes
    per_byte = num_codebooks // columns if columns else 0
    if per_byte not in (2, 4, 8) or per_byte * columns != num_codebooks or codebook_size**per_byte > 256:
        raise ValueError(
            f"codes have {columns} columns; this quantizer has {num_codebooks} codebooks of {codebook_size}: "
            "check which quantizer made them"
        )
    place = codebook_size ** torch.arange(per_byte, device=codes.device)
    return (codes.unsqueeze(2) // place % codebook_size).view(-1, num_codebooks)
