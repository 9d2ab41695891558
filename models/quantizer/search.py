"""The code search in Gram space.

Choosing one entry per codebook so that their sum is nearest to a frame is a discrete quadratic problem:

    ||x - sum_n c_n||^2 = ||x||^2 + sum_n (||c_n||^2 - 2 x.c_n) + sum_{n != m} c_n.c_m

With the inner products of all centers tabulated once, and x.c for all centers from one matrix product per
frame, no step of the search touches the embedding dimension again.

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension, W beams.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class GramTables:
    """What the search needs of the codebooks, all float32 (or the dtype of the centers).

    Every codebook is taken relative to its own mean: the sum is the same once `offset_D` is taken off the
    frame, and the inner products stay small where embeddings have a large common offset, which is what
    float32 would lose its digits to.
    """

    offset_D: Tensor
    centers_MD: Tensor
    norms_M: Tensor
    cross_NMK: Tensor
    """cross_NMK[n, m, k] is twice the inner product of center m (of all) and entry k of codebook n; zero
    where m belongs to codebook n itself, since a code never holds two of its entries."""

    @staticmethod
    def build(centers_NKD: Tensor) -> "GramTables":
        """Tabulate the inner products; costs M * M * D / 2 multiplications and M * M numbers."""
        num_codebooks, codebook_size, dim = centers_NKD.shape
        means_N1D = centers_NKD.mean(dim=1, keepdim=True)
        centered_NKD = centers_NKD - means_N1D
        centers_MD = centered_NKD.reshape(-1, dim)
        cross_NMK = centers_MD.new_empty(num_codebooks, num_codebooks * codebook_size, codebook_size)
        blocks_NNKK = cross_NMK.view(num_codebooks, num_codebooks, codebook_size, codebook_size)
        for n in range(num_codebooks):
            blocks_NNKK[n, n].zero_()
            later = slice((n + 1) * codebook_size, None)
            torch.mm(centers_MD[later], (2 * centered_NKD[n]).t(), out=cross_NMK[n, later])
            blocks_NNKK[n + 1 :, n].copy_(blocks_NNKK[n, n + 1 :].transpose(1, 2))
        return GramTables(
            offset_D=means_N1D.sum(dim=(0, 1)),
            centers_MD=centers_MD,
            norms_M=centers_MD.square().sum(dim=1),
            cross_NMK=cross_NMK,
        )

    def entry_costs(self, x_BD: Tensor) -> Tensor:
        """||c||^2 - 2 x.c of every center c: (B, N, K)."""
        num_codebooks, _, codebook_size = self.cross_NMK.shape
        cost_BM = torch.addmm(self.norms_M, x_BD - self.offset_D, self.centers_MD.t(), alpha=-2)
        return cost_BM.view(-1, num_codebooks, codebook_size)


def _repeated_without(hash_BW: Tensor) -> Tensor:
    """Which beams equal an earlier one: (B, W) bool."""
    same_BWW = hash_BW.unsqueeze(2) == hash_BW.unsqueeze(1)
    return same_BWW.tril(diagonal=-1).any(dim=2)


def _lowest(entry_BWK: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `kept` lowest values over beams and entries, as (values, beams, entries), each (B, kept).

    In two steps, since selecting from W * K values costs more than everything else in the search: the
    lowest `kept` values all lie in the `kept` columns with the lowest minima.
    """
    frames, beams, codebook_size = entry_BWK.shape
    if beams == 1 or kept >= codebook_size:
        value, flat = entry_BWK.reshape(frames, -1).topk(kept, dim=1, largest=False)
        return value, flat // codebook_size, flat % codebook_size
    column_BC = entry_BWK.amin(dim=1).topk(kept, dim=1, largest=False).indices
    few_BWC = entry_BWK.gather(2, column_BC.unsqueeze(1).expand(-1, beams, -1))
    value, flat = few_BWC.view(frames, -1).topk(kept, dim=1, largest=False)
    return value, flat // kept, column_BC.gather(1, flat % kept)


def _beam_pass(
    cost_BNK: Tensor, beams_BWN: Tensor, score_BW: Tensor, tables: GramTables, width: int
) -> tuple[Tensor, Tensor]:
    """Re-choose every codebook once, in order, keeping the `width` best complete codes of each frame.

    A beam is a complete code; at codebook n each beam proposes all K entries for n with its other codes
    kept, so the best score never gets worse.
    """
    frames, num_codebooks, codebook_size = cost_BNK.shape
    device = cost_BNK.device
    base_N = torch.arange(num_codebooks, device=device) * codebook_size
    # Fixed multipliers that look random, one for each codebook, so that other codes hardly ever have the same
    # sum; sums wrap around and stay comparable.
    salt_N = (base_N + 1) * 6364136223846793005 + 1442695040888963407
    for n in range(num_codebooks):
        beams = beams_BWN.shape[1]
        current_BW = beams_BWN[:, :, n]
        own_B1K = cost_BNK[:, n].unsqueeze(1)
        if num_codebooks > 1:
            others = [m for m in range(num_codebooks) if m != n]
            rows = (beams_BWN + base_N)[:, :, others].reshape(-1, num_codebooks - 1)
            interaction = F.embedding_bag(rows, tables.cross_NMK[n], mode="sum")
            entry_BWK = interaction.view(frames, beams, codebook_size).add_(own_B1K)
        else:
            entry_BWK = own_B1K.expand(frames, beams, codebook_size).clone()
        rest_BW = score_BW - entry_BWK.gather(2, current_BW.unsqueeze(2)).squeeze(2)
        if beams > 1:
            # Beams that differ only in codebook n propose the same codes: let one of them do it.
            hash_BW = (beams_BWN * salt_N).sum(dim=2) - current_BW * salt_N[n]
            rest_BW = rest_BW.masked_fill(_repeated_without(hash_BW), torch.inf)
        entry_BWK += rest_BW.unsqueeze(2)
        score_BW, parent_BW, entry_BW = _lowest(entry_BWK, min(width, beams * codebook_size))
        beams_BWN = beams_BWN.gather(1, parent_BW.unsqueeze(2).expand(-1, -1, num_codebooks))
        beams_BWN[:, :, n] = entry_BW
    return beams_BWN, score_BW


def beam_search(
    cost_BNK: Tensor, start_BN: Tensor, tables: GramTables, *, width: int, max_passes: int
) -> Tensor:
    """Improve `start_BN` (int64 codes) by at most `max_passes` passes of a beam over all codebooks.

    A frame leaves the search when a whole pass has not changed its best code. Every operation works on
    the frames one by one, so a frame's codes do not depend on which others are searched with it.

    Returns int64 codes (B, N) whose squared error is never above that of the start.
    """
    codes_BN = start_BN.clone()
    active_B = torch.arange(start_BN.shape[0], device=start_BN.device)
    beams_BWN = start_BN.unsqueeze(1)
    # Only differences of scores matter, so the start scores zero.
    score_BW = cost_BNK.new_zeros(start_BN.shape[0], 1)
    for _ in range(max_passes):
        if active_B.numel() == 0:
            break
        before_BN = codes_BN[active_B]
        beams_BWN, score_BW = _beam_pass(cost_BNK, beams_BWN, score_BW, tables, width)
        best_B = score_BW.argmin(dim=1)
        best_BN = beams_BWN[torch.arange(len(best_B), device=best_B.device), best_B]
        codes_BN[active_B] = best_BN
        moved_B = (best_BN != before_BN).any(dim=1).nonzero().squeeze(1)
        active_B = active_B[moved_B]
        cost_BNK, beams_BWN, score_BW = cost_BNK[moved_B], beams_BWN[moved_B], score_BW[moved_B]
    return codes_BN
