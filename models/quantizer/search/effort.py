"""How long the codes of a frame are searched, and from when on a code counts as better."""

from dataclasses import dataclass
from typing import Literal

Products = Literal["float32", "int8"]

MAX_TENURE = 3
_MOVES_PER_PASS = 4
TOLERANCE = 1e-6
"""Costs that differ by less than this part of the costs' spread are equal: rounding must not look like progress."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A way of encoding that has a name, so that a table can say how its codes were found.

    Attributes:
        passes: `refine_indexes_iters` of `Quantizer.encode`.
        products: to what the factors of the products of frames and centers are rounded.
    """

    passes: int
    products: Products


SEARCHES = {
    "full": Search(passes=5, products="float32"),
    "fast": Search(passes=1, products="int8"),
}
"""A name stands for one way for ever: tables hold it."""


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
