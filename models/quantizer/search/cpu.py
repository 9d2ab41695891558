"""The search of `tables.py` as machine code for the CPU, compiled by numba when it is first used.

In tensor operations every move of the search writes and reads whole batches. Here one frame's costs (8 kB for 8
codebooks) stay in the processor's first cache from its start to its end.

Shape suffixes: B frames, N codebooks, M entries of all codebooks together.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from mvqkd.models.quantizer.search.effort import TOLERANCE, Effort

_FEWEST_FRAMES_PER_PART = 64
_PARTS_PER_THREAD = 2
_LANES = 32


def _with_numba(**more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """How all functions here are compiled."""
    # No NaN comes here, and infinity does: without `nnan` the minima are not vectorized.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"nnan", "nsz", "contract"}, "error_model": "numpy"}

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(cache=True, **options, **more)(function)
        except RuntimeError:
            # Neither the folder of this file nor a home folder can be written: compiled anew in every process.
            return njit(**options, **more)(function)

    return compiled


@_with_numba(inline="always")
def _least(cost_M: np.ndarray, first: int, size: int, lanes: np.ndarray) -> Any:
    """The least of `size` costs, a power of two, from `first` on; `lanes` is a place for `_LANES` of them.

    A loop of fixed length becomes vectors: of a plain minimum the compiler makes one comparison after the other.
    """
    if size < _LANES:
        least = cost_M[first]
        for i in range(1, size):
            least = min(least, cost_M[first + i])
        return least
    for lane in range(_LANES):
        lanes[lane] = cost_M[first + lane]
    for row in range(first + _LANES, first + size, _LANES):
        for lane in range(_LANES):
            lanes[lane] = min(lanes[lane], cost_M[row + lane])
    for lane in range(_LANES // 2):
        lanes[lane] = min(lanes[lane], lanes[_LANES // 2 + lane])
    for lane in range(_LANES // 4):
        lanes[lane] = min(lanes[lane], lanes[_LANES // 4 + lane])
    least = lanes[0]
    for lane in range(1, _LANES // 4):
        least = min(least, lanes[lane])
    return least


@_with_numba(inline="always")
def _greatest(cost_M: np.ndarray, lanes: np.ndarray) -> Any:
    """Of all costs, as `_least`."""
    size = len(cost_M)
    greatest = cost_M[size - 1]
    lanes[:] = greatest
    for row in range(0, size - _LANES + 1, _LANES):
        for lane in range(_LANES):
            lanes[lane] = max(lanes[lane], cost_M[row + lane])
    for i in range(size - size % _LANES, size):
        greatest = max(greatest, cost_M[i])
    for lane in range(_LANES):
        greatest = max(greatest, lanes[lane])
    return greatest


@_with_numba(inline="always")
def _place(cost_M: np.ndarray, first: int, cost: Any) -> int:
    """Where `cost` is found first from `first` on."""
    entry = 0
    while cost_M[first + entry] != cost:
        entry += 1
    return entry


@_with_numba(inline="always")
def _start(
    cost_M: np.ndarray,
    cross_MM: np.ndarray,
    from_codes: bool,
    codes_N: np.ndarray,
    codebook_size: int,
    lanes: np.ndarray,
) -> None:
    """Choose the first code, or take the one given, and add what its entries cost with others."""
    for n in range(len(codes_N)):
        first = n * codebook_size
        if not from_codes:
            codes_N[n] = _place(cost_M, first, _least(cost_M, first, codebook_size, lanes))
        row_M = cross_MM[first + codes_N[n]]
        for i in range(len(cost_M)):
            cost_M[i] += row_M[i]


@_with_numba()
def _search(
    cost_BM: np.ndarray,
    cross_MM: np.ndarray,
    moves: int,
    patience: int,
    tenure: int,
    from_codes: bool,
    codes_BN: np.ndarray,
) -> None:
    """Search frames one after the other; `codes_BN` holds the starts if `from_codes`, and in the end the results."""
    frames, size = cost_BM.shape
    num_codebooks = codes_BN.shape[1]
    codebook_size = size // num_codebooks
    code_N = np.empty(num_codebooks, np.int64)
    free_from_N = np.empty(num_codebooks, np.int64)
    lanes = np.empty(_LANES, cost_BM.dtype)
    for b in range(frames):
        cost_M = cost_BM[b]
        low, high = cost_M[0], _greatest(cost_M, lanes)
        for n in range(num_codebooks):
            low = min(low, _least(cost_M, n * codebook_size, codebook_size, lanes))
        tolerance = (high - low) * cost_M.dtype.type(TOLERANCE)
        _start(cost_M, cross_MM, from_codes, codes_BN[b], codebook_size, lanes)
        if num_codebooks == 1:
            continue
        code_N[:] = codes_BN[b]
        free_from_N[:] = 0
        now = best = tolerance * 0
        failed = 0
        for move in range(moves):
            change, chosen, chosen_least = high, -1, high
            for n in range(num_codebooks):
                first = n * codebook_size
                own = cost_M[first + code_N[n]]
                cost_M[first + code_N[n]] = np.inf
                least = _least(cost_M, first, codebook_size, lanes)
                allowed = free_from_N[n] <= move or now + (least - own) < best - tolerance
                if allowed and (chosen < 0 or least - own < change):
                    change, chosen, chosen_least = least - own, n, least
                cost_M[first + code_N[n]] = own
            better = now + change < best - tolerance
            failed = 0 if better else failed + 1
            if failed > patience:
                break
            own = cost_M[chosen * codebook_size + code_N[chosen]]
            cost_M[chosen * codebook_size + code_N[chosen]] = np.inf
            chosen_entry = _place(cost_M, chosen * codebook_size, chosen_least)
            cost_M[chosen * codebook_size + code_N[chosen]] = own
            old_M = cross_MM[chosen * codebook_size + code_N[chosen]]
            new_M = cross_MM[chosen * codebook_size + chosen_entry]
            for i in range(size):
                cost_M[i] += new_M[i] - old_M[i]
            code_N[chosen] = chosen_entry
            free_from_N[chosen] = move + 1 + tenure
            now += change
            if better:
                best = now
                codes_BN[b] = code_N


def search(
    cost_BM: Tensor, cross_MM: Tensor, num_codebooks: int, effort: Effort, start_BN: Tensor | None
) -> Tensor:
    """As `SearchTables.search`, on as many threads as torch uses."""
    frames = cost_BM.shape[0]
    codes_BN = (
        torch.empty(frames, num_codebooks, dtype=torch.int64)
        if start_BN is None
        else start_BN.contiguous().clone()
    )
    cost, cross, codes = cost_BM.numpy(), cross_MM.numpy(), codes_BN.numpy()

    def part(first: int) -> None:
        rows = slice(first, first + size)
        _search(
            cost[rows], cross, effort.moves, effort.patience, effort.tenure, start_BN is not None, codes[rows]
        )

    threads = torch.get_num_threads()
    # Few parts, for each costs a wake-up; more than threads, for some frames are searched longer than others.
    size = max(_FEWEST_FRAMES_PER_PART, -(-frames // (threads * _PARTS_PER_THREAD)))
    firsts = range(0, frames, size)
    if threads == 1 or len(firsts) <= 1:
        for first in firsts:
            part(first)
    else:
        list(_pool(threads, os.getpid()).map(part, firsts))
    return codes_BN


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept, for starting threads can take as long as searching a thousand frames; a forked process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"search-{process}")
