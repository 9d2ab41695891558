"""Float32 matrix products that are float32, whatever the process allows otherwise, or less on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32_products() -> Iterator[None]:
    """Inside, CUDA computes float32 matrix products without TF32; before and after, as the process has set.

    The switch of `torch.backends.cuda.matmul.allow_tf32`, under its newer name: that one can be read and put
    back whichever of torch's ways the process has used to set it. It is one switch for the whole process.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def products_of_bfloat16() -> Iterator[None]:
    """Inside, float32 matrices whose numbers are bfloat16 ones may go through units of that or a little more precision.

    On CPUs with AMX that is three times as fast as float32, on CUDA with TF32 more. Nothing is lost of such numbers;
    sums are float32. Switches of the whole process, put back afterwards.
    """
    on_cuda, on_cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = on_cuda.fp32_precision, on_cpu.fp32_precision
    on_cuda.fp32_precision, on_cpu.fp32_precision = "tf32", "bf16"
    try:
        yield
    finally:
        on_cuda.fp32_precision, on_cpu.fp32_precision = before
