"""The search of `tables.py` as one kernel for CUDA, written in Triton.

In tensor operations every move of the search reads and writes the costs of all frames several times. Here one program
searches one frame from its start to its end: its costs stay in registers, and only the two rows of the table that a
move needs are read, mostly from the GPU's second cache. Frames that have ended free their place at once.

Shape suffixes: B frames, N codebooks, M entries of all codebooks together.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from mvqkd.models.quantizer.search.effort import TOLERANCE, Effort

_COSTS_PER_WARP = 512


@triton.jit
def _start(
    cost: tl.tensor,
    cross_ptr: tl.tensor,
    start_ptr: tl.tensor,
    n: tl.tensor,
    entries: tl.tensor,
    exists: tl.tensor,
    FROM_CODES: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The first code, chosen or given, and the costs with what its entries cost with others."""
    code = tl.zeros([ROWS], tl.int32)
    for i in range(N):
        if FROM_CODES:
            entry = tl.load(start_ptr + i).to(tl.int32)
        else:
            _, entry_of_n = tl.min(cost, axis=1, return_indices=True)
            entry = tl.sum(tl.where(n == i, entry_of_n, 0), axis=0)
        code = tl.where(n == i, entry, code)
        row = cross_ptr + (i * K + entry).to(tl.int64) * (N * K)
        cost += tl.load(row + entries, mask=exists, other=0.0)
    return cost, code


@triton.jit
def _search(
    cost_ptr: tl.tensor,
    cross_ptr: tl.tensor,
    start_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    moves: int,
    patience: int,
    tenure: int,
    tolerance_share: float,
    FROM_CODES: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """Search frame `program_id`; ROWS is the power of two from N."""
    b = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)
    entries = n[:, None] * K + tl.arange(0, K)[None, :]
    exists = (n < N)[:, None] & (tl.arange(0, K) < K)[None, :]
    cost = tl.load(cost_ptr + b * (N * K) + entries, mask=exists, other=0.0)
    high = tl.max(tl.max(tl.where(exists, cost, float("-inf")), axis=1), axis=0)
    low = tl.min(tl.min(tl.where(exists, cost, float("inf")), axis=1), axis=0)
    tolerance = (high - low) * tolerance_share
    cost, code = _start(cost, cross_ptr, start_ptr + b * N, n, entries, exists, FROM_CODES, N, ROWS, K)
    best_code = code
    now = tolerance * 0
    best = now
    free_from = tl.zeros([ROWS], tl.int32)
    move = 0
    failed = 0
    going = N > 1
    while going & (move < moves):
        own = entries == (n * K + code)[:, None]
        own_cost = tl.sum(tl.where(own, cost, 0.0), axis=1)
        least, entry_of_n = tl.min(tl.where(own, float("inf"), cost), axis=1, return_indices=True)
        change_of_n = least - own_cost
        # Left alone for some moves after it was replaced, unless that gives a new best.
        allowed = (free_from <= move) | (now + change_of_n < best - tolerance)
        change_of_n = tl.where(allowed & (n < N), change_of_n, float("inf"))
        change, chosen = tl.min(change_of_n, axis=0, return_indices=True)
        better = now + change < best - tolerance
        failed = tl.where(better, 0, failed + 1)
        going = failed <= patience
        if going:
            old = tl.sum(tl.where(n == chosen, code, 0), axis=0)
            new = tl.sum(tl.where(n == chosen, entry_of_n, 0), axis=0)
            first = cross_ptr + (chosen * K).to(tl.int64) * (N * K)
            old_row = tl.load(first + old.to(tl.int64) * (N * K) + entries, mask=exists, other=0.0)
            new_row = tl.load(first + new.to(tl.int64) * (N * K) + entries, mask=exists, other=0.0)
            cost += new_row - old_row
            code = tl.where(n == chosen, new, code)
            free_from = tl.where(n == chosen, move + 1 + tenure, free_from)
            now += change
            best = tl.where(better, now, best)
            best_code = tl.where(better, code, best_code)
        move += 1
    tl.store(codes_ptr + b * N + n, best_code.to(tl.int64), mask=n < N)


def search(
    cost_BM: Tensor, cross_MM: Tensor, num_codebooks: int, effort: Effort, start_BN: Tensor | None
) -> Tensor:
    """As `SearchTables.search`; `cost_BM` is only read."""
    frames, size = cost_BM.shape
    codes_BN = torch.empty(frames, num_codebooks, dtype=torch.int64, device=cost_BM.device)
    if not frames:
        return codes_BN
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device_of(cost_BM):
        _search[(frames,)](
            cost_BM,
            cross_MM,
            codes_BN if start_BN is None else start_BN.contiguous(),
            codes_BN,
            effort.moves,
            effort.patience,
            effort.tenure,
            TOLERANCE,
            **constants(size, num_codebooks, start_BN is not None),
            num_warps=warps(size),
        )
    return codes_BN


def constants(size: int, num_codebooks: int, from_codes: bool) -> dict[str, int | bool]:
    """What the kernel is compiled for, for `size` entries in all codebooks together."""
    rows = triton.next_power_of_2(num_codebooks)
    return {"FROM_CODES": from_codes, "N": num_codebooks, "ROWS": rows, "K": size // num_codebooks}


def warps(size: int) -> int:
    """Of one program: as many as leave each thread some 16 costs in registers."""
    return min(32, max(1, triton.next_power_of_2(size) // _COSTS_PER_WARP))
