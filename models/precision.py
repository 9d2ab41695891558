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
def products_of_tf32() -> Iterator[None]:
    """Inside, CUDA may round the factors of float32 products to TF32 (10 bits), for numbers that lose nothing by it.

    Sums are float32. A switch of the whole process, put back afterwards.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
