"""Which search runs where: machine code on the CPU, a kernel on CUDA, tensor operations anywhere.

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mvqkd.models.quantizer.search.effort import Effort
from mvqkd.models.quantizer.search.in_tensors import search_in_step

Search = Callable[[Tensor, Tensor, int, Effort, Tensor | None], Tensor]
"""Costs (B, M), which may be overwritten, the table of pairs, the number of codebooks, the effort, and codes to start
from or None; returns int64 codes (B, N)."""

Backend = Literal["auto", "tensors"]
"""`auto` is what is compiled for the device, or else tensor operations."""


def choose_search(device: torch.device, backend: Backend = "auto") -> Search:
    """The search for costs on a device.

    Raises:
        ValueError: there is no such backend.
    """
    if backend not in ("auto", "tensors"):
        raise ValueError(f'backend={backend!r}; use "auto" or "tensors"')
    return (compiled_search(device) if backend == "auto" else None) or search_in_step


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
