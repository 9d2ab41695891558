"""Products of frames and centers from whole numbers of one byte, whose sums are exact in any order and on any device.

Each frame and each center is divided by its own largest number's 127th part and rounded (Dettmers et al., LLM.int8(),
arXiv 2208.07339, section 3.1; no outlier channels are taken out, as its section 3.2 does). The codes that are found
with these products are hardly worse, since what is rounded averages out over a product.

Shape suffixes: B frames, D embedding dimension, M entries of all codebooks together.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mvqkd.models.precision import products_of_tf32

_GREATEST = 127


@dataclass(frozen=True, kw_only=True)
class ByteProducts:
    """One factor of the products, and how to make the other.

    Where bytes are multiplied as floats, sums beyond 2^24 are rounded, which takes more than 1,040 channels.

    Attributes:
        weight_DM: whole numbers, int8 where the device multiplies them, else of the dtype of the costs.
        step_M: what one of them stands for.
    """

    weight_DM: Tensor
    step_M: Tensor

    @staticmethod
    def of(linear_DM: Tensor) -> "ByteProducts":
        """Those with this matrix."""
        step_M = _step(linear_DM, dim=0)
        weight_DM = (linear_DM / step_M).round()
        if linear_DM.device.type == "cpu" and multiplies_bytes():
            weight_DM = weight_DM.to(torch.int8)
        return ByteProducts(weight_DM=weight_DM.contiguous(), step_M=step_M.squeeze(0))

    def add_to(self, bias_M: Tensor, x_BD: Tensor, *, out: Tensor | None = None) -> Tensor:
        """`bias_M` and the products of frames (B, D) with the matrix: (B, M)."""
        step_B1 = _step(x_BD, dim=1)
        x_BD = (x_BD / step_B1).round_()
        if self.weight_DM.dtype == torch.int8:
            product_BM = torch._int_mm(x_BD.to(torch.int8), self.weight_DM).to(bias_M.dtype)
        else:
            with products_of_tf32():
                product_BM = x_BD @ self.weight_DM
        return torch.addcmul(bias_M, product_BM.mul_(self.step_M), step_B1, out=out)


@cache
def multiplies_bytes() -> bool:
    """Whether this CPU multiplies bytes faster than floats, and torch gets it right: without these instructions some
    kernels saturate at 16 bits."""
    if not torch.cpu._is_vnni_supported():
        return False
    greatest_DM = torch.full((512, 64), _GREATEST, dtype=torch.int8)
    return bool((torch._int_mm(greatest_DM.t().contiguous(), greatest_DM) == 512 * _GREATEST**2).all())


def _step(x: Tensor, *, dim: int) -> Tensor:
    # A row of zeros has no largest number to be divided by.
    return (x.abs().amax(dim=dim, keepdim=True) / _GREATEST).clamp_min(torch.finfo(x.dtype).tiny)
