"""The search of `tables.py` in tensor operations, on any device.

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K.
"""

import torch
from torch import Tensor

from mvqkd.models.quantizer.search.effort import TOLERANCE, Effort


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
