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

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_TENURE = 3
_MOVES_PER_PASS = 4
_ROWS_PER_PRODUCT = {"cpu": 256, "cuda": 4096}
_COSTS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
TOLERANCE = 1e-6
"""Costs that differ by less than this part of the costs' spread are equal: rounding must not look like progress."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a frame is searched.

    Attributes:
        moves: replacements after the start, at most.
        patience: how many of them in a row may fail to reach a new best; 0 stops in the first minimum.
        tenure: moves for which a codebook that was replaced is left alone.
    """

    moves: int
    patience: int
    tenure: int

    @staticmethod
    def of_passes(passes: int, num_codebooks: int) -> "Effort":
        """What `refine_indexes_iters` means; more passes go on where fewer would have stopped."""
        patience = passes * passes - 1  # 0, 3, 8, 15, 24
        return Effort(
            moves=_MOVES_PER_PASS * passes * num_codebooks + patience,
            patience=patience,
            tenure=min(MAX_TENURE, num_codebooks // 2),
        )


@dataclass(frozen=True, kw_only=True)
class SearchTables:
    """What the search needs of a quantizer, all float32 (or the dtype of the centers).

    Every codebook is taken relative to its own mean: the sum is the same once `offset_D` is taken off the frame,
    and the inner products stay small where embeddings have a large common offset, which is what float32 would lose
    its digits to.
    """

    num_codebooks: int
    offset_D: Tensor
    linear: tuple[Tensor, ...]
    """One matrix (D, M), or two, (D, R) and (R, M): a frame's product with column m is what center m costs in that
    frame, up to `bias_M`."""
    bias_M: Tensor
    cross_MM: Tensor
    """What two centers cost together; zero where both are of one codebook, since a code never holds both."""

    @staticmethod
    def build(
        centers_NKD: Tensor,
        *,
        logits: tuple[Tensor, Tensor] | None = None,
        logprob_weight: float = 0.0,
        prefix_weights: Sequence[float] | None = None,
        rank: int | None = None,
    ) -> "SearchTables":
        """Tabulate the inner products; costs M * M * D multiplications and M * M numbers.

        Args:
            centers_NKD: the centers as they enter the sum.
            logits: weight (M, D) and bias (M,) of the classifier, needed for a `logprob_weight`.
            logprob_weight: squared error that one nat of the classifier's -log p is worth.
            prefix_weights: N numbers; the search minimises the sum over k of number k times the squared error of
                the first k codebooks' sum. None is the error of the whole sum alone.
            rank: approximate the products of frames and centers by a matrix of this rank; None is exact.
        """
        num_codebooks, codebook_size, dim = centers_NKD.shape
        means_ND = centers_NKD.mean(dim=1)
        centered_NKD = centers_NKD - means_ND.unsqueeze(1)
        centers_MD = centered_NKD.reshape(-1, dim)
        offset_D = means_ND.sum(dim=0)
        prefix = list(prefix_weights) if prefix_weights is not None else [0.0] * (num_codebooks - 1) + [1.0]
        # Codebook n is part of all prefixes from n on.
        weight_N = centers_MD.new_tensor(list(accumulate(reversed(prefix)))[::-1])
        weight_M1 = weight_N.repeat_interleave(codebook_size).unsqueeze(1)
        bias_NK = weight_N.unsqueeze(1) * centered_NKD.square().sum(dim=2)
        if prefix_weights is not None:
            # A prefix has the means of its own codebooks alone taken off, and not those of all.
            missing_ND = means_ND.cumsum(dim=0) - offset_D
            weighted_ND = missing_ND * centers_MD.new_tensor(prefix).unsqueeze(1)
            from_n_ND = weighted_ND.flip(0).cumsum(dim=0).flip(0)
            bias_NK = bias_NK + 2 * torch.einsum("nkd,nd->nk", centered_NKD, from_n_ND)
        linear_MD = -2 * weight_M1 * centers_MD
        bias_M = bias_NK.reshape(-1)
        if logprob_weight:
            assert logits is not None, "a weight of the classifier needs the classifier"
            weight_MD, logits_bias_M = logits
            linear_MD = linear_MD - logprob_weight * weight_MD
            # The costs are taken at x - offset.
            bias_M = bias_M - logprob_weight * (logits_bias_M + weight_MD @ offset_D)
        cross_MM = centers_MD @ (2 * centers_MD).t()
        blocks_NKNK = cross_MM.view(num_codebooks, codebook_size, num_codebooks, codebook_size)
        for n in range(num_codebooks):
            blocks_NKNK[n, :, n].zero_()
            if prefix_weights is not None:
                # The pair n, m is part of the prefixes from the later one on.
                blocks_NKNK[n, :, :n] *= weight_N[n]
                blocks_NKNK[n, :, n + 1 :] *= weight_N[n + 1 :].view(1, -1, 1)
        return SearchTables(
            num_codebooks=num_codebooks,
            offset_D=offset_D,
            linear=(linear_MD.t().contiguous(),)
            if rank is None
            else _of_rank(linear_MD.t(), centers_MD, rank),
            bias_M=bias_M,
            cross_MM=cross_MM,
        )

    def codes(self, x_BD: Tensor, effort: Effort, start_BN: Tensor | None = None) -> Tensor:
        """The codes found for frames (B, D): int64 (B, N).

        Every frame is searched by itself, and matrix products are always of the same number of rows (for others
        they are rounded differently), so the codes of a frame do not depend on which others there are.

        Args:
            x_BD: frames in the dtype of the tables.
            effort: how long to search.
            start_BN: int64 codes to start from; the result never costs more than they do. None starts greedily.
        """
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
            codes_BN[own] = self.search(
                cost_BM[: len(part_BD)], effort, None if start_BN is None else start_BN[own]
            )
        return codes_BN

    def entry_costs(self, x_BD: Tensor, *, out: Tensor | None = None) -> Tensor:
        """What every center costs in every frame, other centers aside: (B, M)."""
        x_BD = x_BD - self.offset_D
        for narrow in self.linear[:-1]:
            x_BD = x_BD @ narrow
        return torch.addmm(self.bias_M, x_BD, self.linear[-1], out=out)

    def search(self, cost_BM: Tensor, effort: Effort, start_BN: Tensor | None = None) -> Tensor:
        """`codes` of frames whose `entry_costs` these are; `cost_BM` is overwritten."""
        search = compiled_search(cost_BM.device) or search_in_step
        return search(cost_BM, self.cross_MM, self.num_codebooks, effort, start_BN)


def _of_rank(linear_DM: Tensor, centers_MD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best two factors for frames that vary as sums of the centers do."""
    scatter_DD = centers_MD.t() @ centers_MD
    scatter_DD.diagonal().add_(1e-3 * scatter_DD.diagonal().mean())
    variance_D, axes_DD = torch.linalg.eigh(scatter_DD)
    spread_D = variance_D.sqrt()
    left, values, right = torch.linalg.svd(
        spread_D.unsqueeze(1) * (axes_DD.t() @ linear_DM), full_matrices=False
    )
    narrow_DR = axes_DD @ (left[:, :rank] / spread_D.unsqueeze(1))
    return narrow_DR.contiguous(), values[:rank].unsqueeze(1) * right[:rank]


Search = Callable[[Tensor, Tensor, int, Effort, Tensor | None], Tensor]
"""Costs (B, M), which may be overwritten, the table of pairs, the number of codebooks, the effort, and codes to start
from or None; returns int64 codes (B, N)."""


@cache
def compiled_search(device: torch.device) -> Search | None:
    """The search compiled for a device; None where it cannot be, and then tensor operations do."""
    if device.type == "cpu":
        try:
            from mvqkd.models.quantizer.search import cpu as search_cpu
        except ModuleNotFoundError as error:
            if error.name != "numba":
                raise
            return None
        return search_cpu.search
    if device.type != "cuda":
        return None
    try:
        from mvqkd.models.quantizer.search import triton as search_triton

        _check_against_tensors(search_triton.search, device)
    except Exception as error:  # noqa: BLE001 -- compilers for GPUs fail in many ways, and there is another way
        warnings.warn(
            f"the search of codes cannot be compiled for {device} and runs in tensor operations, which takes longer: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return search_triton.search


def _check_against_tensors(search: Search, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    cost_BM = torch.randn(64, 4 * 16, generator=generator).to(device)
    centers_MD = torch.randn(4 * 16, 8, generator=generator).to(device)
    cross_MM = centers_MD @ centers_MD.t()
    effort = Effort.of_passes(3, 4)
    found, expected = (each(cost_BM.clone(), cross_MM, 4, effort, None) for each in (search, search_in_step))
    if not torch.equal(found, expected):
        raise ArithmeticError("it finds other codes than the search in tensor operations")


def search_in_step(
    cost_BM: Tensor, cross_MM: Tensor, num_codebooks: int, effort: Effort, start_BN: Tensor | None
) -> Tensor:
    """The search in tensor operations, all frames moving at once: where it is not compiled."""
    frames = cost_BM.shape[0]
    # On CUDA the host would wait for the device each time that it looks whether all frames have stopped.
    look_every = 1 if cost_BM.device.type == "cpu" else 16
    codebook_size = cost_BM.shape[1] // num_codebooks
    cost_BNK = cost_BM.view(frames, num_codebooks, codebook_size)
    first_N = torch.arange(num_codebooks, device=cost_BM.device) * codebook_size
    code_BN = cost_BM.new_zeros((frames, num_codebooks), dtype=torch.int64)
    tolerance_B = TOLERANCE * (cost_BM.amax(dim=1) - cost_BM.amin(dim=1))
    for n in range(num_codebooks):
        code_BN[:, n] = cost_BNK[:, n].argmin(dim=1) if start_BN is None else start_BN[:, n]
        cost_BM += cross_MM[code_BN[:, n] + first_N[n]]
    best_BN = code_BN.clone()
    # Only differences matter, so the start costs nothing.
    now_B = torch.zeros_like(tolerance_B)
    best_B = torch.zeros_like(tolerance_B)
    failed_B = torch.zeros_like(code_BN[:, 0])
    active_B = torch.ones_like(failed_B, dtype=torch.bool)
    free_from_BN = torch.zeros_like(code_BN)
    for move in range(effort.moves if num_codebooks > 1 else 0):
        own_BN1 = cost_BNK.gather(2, code_BN.unsqueeze(2))
        cost_BNK.scatter_(2, code_BN.unsqueeze(2), torch.inf)
        least_BN, entry_BN = cost_BNK.min(dim=2)
        cost_BNK.scatter_(2, code_BN.unsqueeze(2), own_BN1)
        change_BN = least_BN - own_BN1.squeeze(2)
        new_best_BN = now_B.unsqueeze(1) + change_BN < (best_B - tolerance_B).unsqueeze(1)
        change_BN = change_BN.masked_fill((free_from_BN > move) & ~new_best_BN, torch.inf)
        change_B, n_B = change_BN.min(dim=1)
        better_B = now_B + change_B < best_B - tolerance_B
        failed_B = torch.where(better_B, 0, failed_B + 1)
        active_B &= failed_B <= effort.patience
        if move % look_every == 0 and not bool(active_B.any()):
            break
        n_B1, active_B1 = n_B.unsqueeze(1), active_B.unsqueeze(1)
        old_B, new_B = (codes.gather(1, n_B1).squeeze(1) + first_N[n_B] for codes in (code_BN, entry_BN))
        cost_BM += (cross_MM[new_B] - cross_MM[old_B]) * active_B1
        moved_BN = code_BN.scatter(1, n_B1, entry_BN.gather(1, n_B1))
        code_BN = torch.where(active_B1, moved_BN, code_BN)
        free_from_BN = free_from_BN.scatter(1, n_B1, move + 1 + effort.tenure)
        now_B = now_B + change_B
        better_B &= active_B
        best_B = torch.where(better_B, now_B, best_B)
        best_BN = torch.where(better_B.unsqueeze(1), code_BN, best_BN)
    return best_BN
