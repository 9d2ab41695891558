"""How often each code occurs, as JSON: the counts of a shard in its footer.

Shape suffixes: N codebooks, K entries of a codebook.
"""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_INTEGERS = ("<u1", "<u2", "<u4", "<i8")


def pack_counts(counts_NK: np.ndarray) -> list[Any]:
    """Shape, integer type, text: the smallest type that holds all counts, zlib, base 64."""
    largest = counts_NK.max(initial=0)
    kind = next(kind for kind in _INTEGERS if largest <= np.iinfo(kind).max)
    data = zlib.compress(counts_NK.astype(kind).tobytes(), 9)
    return [*counts_NK.shape, kind, base64.b64encode(data).decode()]


def unpack_counts(packed: Sequence[Any]) -> np.ndarray:
    """The int64 counts that `pack_counts` was given. Raises ValueError, TypeError or zlib.error for anything else."""
    num_codebooks, codebook_size, kind, text = packed
    if kind not in _INTEGERS:
        raise ValueError(f"counts of type {kind!r}")
    counts = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=kind)
    return counts.reshape(num_codebooks, codebook_size).astype(np.int64)
