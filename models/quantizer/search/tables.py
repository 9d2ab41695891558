"""The code search in Gram space.

Choosing one entry per codebook so that their sum is nearest to a frame is a discrete quadratic problem:

    ||x - sum_n c_n||^2 = ||x||^2 + sum_n (||c_n||^2 - 2 x.c_n) + sum_{n != m} c_n.c_m

With the inner products of all centers tabulated once, and x.c for all centers from one matrix product per
frame, no step of the search touches the embedding dimension again. Two more terms have the same form and cost
nothing more: the classifier's -log p of the chosen codes, which is linear in x up to a constant of the frame, and
the errors of the sums of the first k codebooks, which only weight the inner products.

The search keeps, for one complete code, what every entry of every codebook would cost in place of the present one.
It starts greedily, one codebook after the other. Then the best single replacement is made, again and again; in a
minimum the least bad one is made, and the codebooks replaced last are left alone for some moves unless that would
be a new best (tabu search, Glover 1989), so that the search climbs out instead of falling back. The best code seen
is the result.

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from mvqkd.models.quantizer.search.byte_products import ByteProducts
from mvqkd.models.quantizer.search.choose import Backend, choose_search
from mvqkd.models.quantizer.search.effort import Effort

_ROWS_PER_PRODUCT = {"cpu": 256, "cuda": 4096}
_COSTS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}


@dataclass(frozen=True, kw_only=True)
class SearchTables:
    """What the search needs of a quantizer, all float32 (or the dtype of the centers).

    Every codebook is taken relative to its own mean: the sum is the same once `offset_D` is taken off the frame,
    and the inner products stay small where embeddings have a large common offset, which is what float32 would lose
    its digits to.
    """

    num_codebooks: int
    offset_D: Tensor
    linear_DM: Tensor
    """A frame's product with column m is what center m costs in that frame, up to `bias_M`."""
    bias_M: Tensor
    cross_MM: Tensor
    """What two centers cost together; zero where both are of one codebook, since a code never holds both."""
    largest: float
    """Magnitude of a frame's numbers up to which no cost can overflow."""
    byte_products: ByteProducts | None = None
    """In the place of `linear_DM`, where a frame's products are taken of numbers of one byte."""

    @staticmethod
    def build(
        centers_NKD: Tensor,
        *,
        logits: tuple[Tensor, Tensor] | None = None,
        logprob_weight: float = 0.0,
        prefix_weights: Sequence[float] | None = None,
        channel_weights_D: Tensor | None = None,
    ) -> "SearchTables":
        """Tabulate the inner products; costs M * M * D multiplications and M * M numbers.

        Args:
            centers_NKD: the centers as they enter the sum.
            logits: weight (M, D) and bias (M,) of the classifier, needed for a `logprob_weight`.
            logprob_weight: squared error that one nat of the classifier's -log p is worth.
            prefix_weights: N numbers; the search minimises the sum over k of number k times the squared error of
                the first k codebooks' sum. None is the error of the whole sum alone.
            channel_weights_D: factors of the squared error in each channel. None is 1 for all.
        """
        num_codebooks, codebook_size, dim = centers_NKD.shape
        means_ND = centers_NKD.mean(dim=1)
        centered_NKD = centers_NKD - means_ND.unsqueeze(1)
        # One factor of every product is weighted by channel, so that the products are those of the weighted error.
        weighted_NKD = centered_NKD if channel_weights_D is None else centered_NKD * channel_weights_D
        centers_MD, weighted_MD = (each.reshape(-1, dim) for each in (centered_NKD, weighted_NKD))
        offset_D = means_ND.sum(dim=0)
        prefix = list(prefix_weights) if prefix_weights is not None else [0.0] * (num_codebooks - 1) + [1.0]
        # Codebook n is part of all prefixes from n on.
        weight_N = centers_MD.new_tensor(list(accumulate(reversed(prefix)))[::-1])
        bias_NK = weight_N.unsqueeze(1) * (centered_NKD * weighted_NKD).sum(dim=2)
        if prefix_weights is not None:
            # A prefix has the means of its own codebooks alone taken off, and not those of all.
            missing_ND = means_ND.cumsum(dim=0) - offset_D
            missing_ND = missing_ND * centers_MD.new_tensor(prefix).unsqueeze(1)
            from_n_ND = missing_ND.flip(0).cumsum(dim=0).flip(0)
            bias_NK = bias_NK + 2 * torch.einsum("nkd,nd->nk", weighted_NKD, from_n_ND)
        linear_MD = -2 * weight_N.repeat_interleave(codebook_size).unsqueeze(1) * weighted_MD
        bias_M = bias_NK.reshape(-1)
        if logprob_weight:
            assert logits is not None, "a weight of the classifier needs the classifier"
            logits_MD, logits_bias_M = logits
            linear_MD = linear_MD - logprob_weight * logits_MD
            # The costs are taken at x - offset.
            bias_M = bias_M - logprob_weight * (logits_bias_M + logits_MD @ offset_D)
        linear_DM = linear_MD.t()
        # A quarter: the offset is taken off a frame, and other costs are added to these.
        largest = torch.finfo(linear_MD.dtype).max / 4 / (1.0 + float(linear_MD.abs().sum(dim=1).max()))
        return SearchTables(
            num_codebooks=num_codebooks,
            offset_D=offset_D,
            linear_DM=linear_DM.contiguous(),
            bias_M=bias_M,
            cross_MM=_pair_costs(
                centers_MD @ (2 * weighted_MD).t(),
                None if prefix_weights is None else weight_N,
                num_codebooks,
            ),
            largest=largest,
        )

    def codes(
        self, x_BD: Tensor, effort: Effort, start_BN: Tensor | None = None, *, backend: Backend = "auto"
    ) -> Tensor:
        """The codes found for frames (B, D): int64 (B, N).

        Every frame is searched by itself, and matrix products are always of the same number of rows (for others
        they are rounded differently), so the codes of a frame do not depend on which others there are.

        Args:
            x_BD: frames in the dtype of the tables.
            effort: how long to search.
            start_BN: int64 codes to start from; the result never costs more than they do. None starts greedily.
            backend: of the search, see `choose.py`.

        Raises:
            ValueError: a frame is so large that its costs would overflow; the rows are named.
        """
        if len(x_BD) and not float(x_BD.abs().amax()) <= self.largest:
            large = (~(x_BD.abs() <= self.largest).all(dim=1)).nonzero().squeeze(1).tolist()
            raise ValueError(
                f"numbers beyond {self.largest:.3g} in {len(large)} of {len(x_BD)} frames (rows {large[:10]}) are too "
                f"large to be encoded in {str(x_BD.dtype).removeprefix('torch.')}; leave this input out, or scale it"
            )
        return self.codes_of_checked(x_BD, effort, start_BN, backend=backend)

    def codes_of_checked(
        self, x_BD: Tensor, effort: Effort, start_BN: Tensor | None = None, *, backend: Backend = "auto"
    ) -> Tensor:
        """`codes` of frames of which no number is NaN or beyond `largest`; on CUDA the host does not wait for it."""
        rows = _ROWS_PER_PRODUCT.get(x_BD.device.type, 4096)
        size = len(self.bias_M)
        at_once = rows * max(1, _COSTS_AT_ONCE.get(x_BD.device.type, 2**21) // (rows * size))
        # One piece of memory for all blocks: what is touched for the first time costs as much as the search.
        cost_BM = x_BD.new_empty((min(at_once, -(-len(x_BD) // rows) * rows), size))
        codes_BN = torch.empty((len(x_BD), self.num_codebooks), dtype=torch.int64, device=x_BD.device)
        for first in range(0, len(x_BD), at_once):
            own = slice(first, first + at_once)
            part_BD = x_BD[own]
            for start in range(0, len(part_BD), rows):
                block_BD = part_BD[start : start + rows]
                if len(block_BD) < rows:
                    block_BD = F.pad(block_BD, (0, 0, 0, rows - len(block_BD)))
                self.entry_costs(block_BD, out=cost_BM[start : start + rows])
            own_start_BN = None if start_BN is None else start_BN[own]
            codes_BN[own] = self.search(cost_BM[: len(part_BD)], effort, own_start_BN, backend=backend)
        return codes_BN

    @cached_property
    def in_bytes(self) -> "SearchTables":
        """The same with products of numbers of one byte, which CPUs and GPUs compute several times as fast."""
        return replace(self, byte_products=ByteProducts.of(self.linear_DM))

    def entry_costs(self, x_BD: Tensor, *, out: Tensor | None = None) -> Tensor:
        """What every center costs in every frame, other centers aside: (B, M)."""
        x_BD = x_BD - self.offset_D
        if self.byte_products is not None:
            return self.byte_products.add_to(self.bias_M, x_BD, out=out)
        return torch.addmm(self.bias_M, x_BD, self.linear_DM, out=out)

    def search(
        self, cost_BM: Tensor, effort: Effort, start_BN: Tensor | None = None, *, backend: Backend = "auto"
    ) -> Tensor:
        """`codes` of frames whose `entry_costs` these are; `cost_BM` is overwritten."""
        search = choose_search(cost_BM.device, backend)
        return search(cost_BM, self.cross_MM, self.num_codebooks, effort, start_BN)


def _pair_costs(cross_MM: Tensor, weight_N: Tensor | None, num_codebooks: int) -> Tensor:
    """What two centers cost together, made in place of twice their inner products.

    Args:
        weight_N: of the prefixes that a codebook is part of; None where the whole sum alone counts.
    """
    size = len(cross_MM) // num_codebooks
    blocks_NKNK = cross_MM.view(num_codebooks, size, num_codebooks, size)
    for n in range(num_codebooks):
        blocks_NKNK[n, :, n].zero_()
        if weight_N is not None:
            # The pair n, m is part of the prefixes from the later one on.
            blocks_NKNK[n, :, :n] *= weight_N[n]
            blocks_NKNK[n, :, n + 1 :] *= weight_N[n + 1 :].view(1, -1, 1)
    return cross_MM
