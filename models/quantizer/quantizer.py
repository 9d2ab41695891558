"""A direct-sum quantizer: a frame is the sum of one center out of each codebook.

Same API and state-dict names as `multi_quantization` 0.1.1 (arXiv 2211.00508, section 3), so that its
checkpoints load and code written for it runs. The search over codes is our own (`search/`).

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mvqkd.models.precision import full_float32_products
from mvqkd.models.quantizer.codebooks import Codebooks
from mvqkd.models.quantizer.derive import SCALE_SPEED, first_codebooks, paired_codebooks
from mvqkd.models.quantizer.metrics import missing_entropy
from mvqkd.models.quantizer.packing import packed
from mvqkd.models.quantizer.search.choose import Backend
from mvqkd.models.quantizer.search.effort import Effort, Products
from mvqkd.models.quantizer.search.tables import SearchTables

_GUESSES_AT_ONCE = 256


class Quantizer(Codebooks):
    """N codebooks of K centers each, and a linear classifier that guesses a frame's codes.

    Args:
        dim: embedding dimension.
        codebook_size: entries per codebook, a power of two.
        num_codebooks: any number from 1.
        logprob_weight: squared error that one nat of the classifier's -log p is worth when codes are searched:
            above 0, codes that the classifier expects are preferred to others that are hardly nearer.
        prefix_weights: N numbers; encoding then minimises the sum over k of number k times the squared error of
            the first k codebooks' sum, so that the first codes alone are a code too. None: the whole sum counts.
        channel_weights: D numbers above 0, factors of the squared error in each channel when codes are searched, for
            quantizers of frames whose channels were normalized each by itself. None: all channels count alike.

    The last three say how to encode and are no part of the state dict, whose names are the reference's;
    `quantizer_to_arrays` keeps them. Parameters are initialised from torch's global generator; the id as well, so a
    seed fixes both.

    The tables of the search (see `search/tables.py`; N * K squared numbers) are kept between calls and built anew
    when the centers have changed.

    Raises:
        ValueError: a size is impossible.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int,
        *,
        logprob_weight: float = 0.0,
        prefix_weights: Sequence[float] | None = None,
        channel_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(dim, codebook_size, num_codebooks)
        _check_encoding(dim, num_codebooks, logprob_weight, prefix_weights, channel_weights)
        self.logprob_weight = logprob_weight
        self.prefix_weights = None if prefix_weights is None else tuple(prefix_weights)
        self.channel_weights = None if channel_weights is None else tuple(channel_weights)
        self._tables: SearchTables | None = None
        self._tables_of: tuple[Tensor, ...] = ()

    def _encoding_bytes(self) -> bytes:
        parts = b""
        if self.logprob_weight or self.prefix_weights:
            parts = repr((self.logprob_weight, self.prefix_weights)).encode()
        return parts + (repr(self.channel_weights).encode() if self.channel_weights else b"")

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], **encoding: Any) -> "Quantizer":
        """The quantizer, on the device of the weights, whose state dict they are; without `id_buf` its id is random.

        torch's global generator is left as it is.

        Args:
            encoding: the keyword arguments of the class.

        Raises:
            RuntimeError: the weights do not fit together.
        """
        centers_NKD = weights["centers"]
        num_codebooks, codebook_size, dim = centers_NKD.shape
        with torch.random.fork_rng(devices=[]):
            quantizer = cls(dim, codebook_size, num_codebooks, **encoding)
        quantizer.to(centers_NKD.device, centers_NKD.dtype)
        quantizer.load_state_dict({"id_buf": quantizer.id_buf, **weights})
        return quantizer

    def get_product_quantizer(self) -> "Quantizer":
        """A quantizer of N / 2 codebooks of K * K entries: each entry the sum of a pair's entries.

        The same vectors; entry k1 * K + k2 of codebook n is entries k1 and k2 of codebooks 2n and 2n + 1.

        Raises:
            ValueError: the number of codebooks is odd.
        """
        if self.num_codebooks % 2:
            raise ValueError(f"{self.num_codebooks} codebooks cannot be paired; use an even number")
        return Quantizer.of_weights(
            paired_codebooks(self.parameter_tensors()), channel_weights=self.channel_weights
        )

    def first(self, num_codebooks: int) -> "Quantizer":
        """The quantizer of the first codebooks alone, in eval mode: it decodes the first columns of codes.

        How near that comes depends on how this one was fitted; the id is that of the weights taken.

        Raises:
            ValueError: there are not so many codebooks.
        """
        if not 1 <= num_codebooks <= self.num_codebooks:
            raise ValueError(
                f"this quantizer has {self.num_codebooks} codebooks, so {num_codebooks} cannot be taken"
            )
        prefix_weights = self.prefix_weights and self.prefix_weights[:num_codebooks]
        if prefix_weights and not prefix_weights[-1]:
            prefix_weights = None
        part = Quantizer.of_weights(
            first_codebooks(self.parameter_tensors(), num_codebooks),
            logprob_weight=self.logprob_weight,
            prefix_weights=prefix_weights,
            channel_weights=self.channel_weights,
        )
        part.set_id_from_weights()
        return part.eval()

    def encode(
        self,
        x: Tensor,
        refine_indexes_iters: int = 5,
        as_bytes: bool = True,
        *,
        products: Products = "float32",
        backend: Backend = "auto",
    ) -> Tensor:
        """Codes whose sum of centers is near each frame.

        A function of the frame alone: matrix products are done in blocks of a fixed number of rows, and the
        search works on every frame by itself, so the same frame has the same codes alone, in any batch and
        in any order (on one device and library; between devices sums are rounded differently and frames with
        two almost equally good codes may get the other one). Computed in the dtype of the centers (float32),
        whatever the dtype of `x`, any autocast around it, and whether the process allows TF32.

        Args:
            x: (*, D), any float dtype.
            refine_indexes_iters: how long to search; 1 stops in the first minimum, more passes never end in a
                worse code, and 0 takes the classifier's guess instead. Few frames need all passes.
            as_bytes: return uint8, with several codes to a byte where they fit (two of 16 entries, if the
                number of codebooks is even).
            products: "int8" rounds the factors of the products of frames and centers to 8 bits, which is several
                times as fast where a processor multiplies bytes, for codes that are hardly worse.
            backend: "auto" runs the search compiled for the device where it can be, "tensors" in tensor operations.

        Returns: (*, N) int64, or uint8 with (*, N / codes per byte).

        Raises:
            ValueError: wrong dimension or dtype, NaN or infinity (the rows are named), products or a backend
                that are none, or `as_bytes` with more than 256 entries.
        """
        if as_bytes and self.codebook_size > 256:
            raise ValueError(f"codes of {self.codebook_size} entries fit no byte; use as_bytes=False")
        if products not in get_args(Products):
            raise ValueError(f"products={products!r}; use {' or '.join(get_args(Products))}")
        x_BD = self._checked_frames(x)
        # No TF32 either: with ten bits of mantissa near codes would be told apart by rounding.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_float32_products():
            if refine_indexes_iters > 0:
                effort = Effort.of_passes(refine_indexes_iters, self.num_codebooks)
                codes_BN = self.search_tables(products).codes(x_BD, effort, backend=backend)
            else:
                codes_BN = self._guesses(x_BD)
        if as_bytes:
            codes_BN = packed(codes_BN, self.codebook_size)
        return codes_BN.view(*x.shape[:-1], codes_BN.shape[-1])

    def compute_loss(self, x: Tensor, refine_indexes_iters: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parts of the training loss (arXiv 2211.00508, section 3), each a scalar.

        Args:
            x: frames (*, D).
            refine_indexes_iters: passes of the search after the classifier's guess.

        Returns:
            rel_reconstruction_loss: sum ||x - x_hat||^2 / sum ||x - get_data_mean()||^2; trains the centers.
            logprob_loss: mean negative log probability of the chosen codes; trains the classifier.
            logits_entropy_loss: 1 - entropy of the classifier's mean output / log K.
            index_entropy_loss: the same of the chosen codes; not differentiable.
        """
        x_BD = x.reshape(-1, self.dim)
        logits_BNK = self._logits(x_BD)
        with torch.no_grad():
            codes_BN = logits_BNK.argmax(dim=2)
            if refine_indexes_iters > 0:
                effort = Effort.of_passes(refine_indexes_iters, self.num_codebooks)
                codes_BN = self.search_tables().codes(x_BD, effort, codes_BN)
        error = (self._sum_of_centers(codes_BN) - x_BD).square().sum()
        reconstruction = error / ((x_BD - self.get_data_mean()).square().sum() + 1e-20)
        logprobs_BNK = logits_BNK.log_softmax(dim=2)
        logprob = -logprobs_BNK.gather(2, codes_BN.unsqueeze(2)).mean()
        counts_M = torch.bincount(
            self._rows(codes_BN).reshape(-1), minlength=self.num_codebooks * self.codebook_size
        )
        usage_NK = counts_M.view(self.num_codebooks, self.codebook_size) / x_BD.shape[0]
        return (
            reconstruction,
            logprob,
            missing_entropy(logprobs_BNK.exp().mean(dim=0)),
            missing_entropy(usage_NK),
        )

    def _checked_frames(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.dim or not x.is_floating_point():
            raise ValueError(
                f"x is {x.dtype} of shape {tuple(x.shape)}; this quantizer takes floats (*, {self.dim})"
            )
        x_BD = x.detach().reshape(-1, self.dim).to(self.centers.dtype)
        # One sum tells in a single pass over the frames; only where it is not finite each number is looked at.
        finite_B = x_BD.sum(dim=1).isfinite()
        if not bool(finite_B.all()):
            finite_B = x_BD.isfinite().all(dim=1)
        if not bool(finite_B.all()):
            rows = (~finite_B).nonzero().squeeze(1).tolist()
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            raise ValueError(
                f"NaN or infinity in {len(rows)} of {len(finite_B)} frames (rows {shown}); "
                "leave this input out, or look for an overflow in the teacher"
            )
        return x_BD

    def _guesses(self, x_BD: Tensor) -> Tensor:
        """The classifier's most likely codes, in products of a fixed number of rows as in `SearchTables.codes`."""
        parts = []
        for rows_BD in x_BD.split(_GUESSES_AT_ONCE):
            padded_BD = F.pad(rows_BD, (0, 0, 0, _GUESSES_AT_ONCE - len(rows_BD)))
            parts.append(self._logits(padded_BD).argmax(dim=2)[: len(rows_BD)])
        return torch.cat(parts)

    @torch.no_grad()
    def search_tables(self, products: Products = "float32") -> SearchTables:
        """What the search needs of the weights as they are now, with such products of frames and centers."""
        parts: tuple[Tensor, ...] = (self.get_centers(),)
        if self.logprob_weight:
            scale = (self.logits_scale * SCALE_SPEED).exp()
            parts += (scale * self.to_logits.weight, self.to_logits.bias.clone())
        # Compared by value: fused optimizers and writes through `.data` leave no trace in version counters.
        if self._tables is None or not _same(self._tables_of, parts):
            self._tables = None  # so that two sets are never held at once
            weights = self.channel_weights
            self._tables = SearchTables.build(
                parts[0],
                logits=(parts[1], parts[2]) if self.logprob_weight else None,
                logprob_weight=self.logprob_weight,
                prefix_weights=self.prefix_weights,
                channel_weights_D=None if weights is None else parts[0].new_tensor(weights),
            )
            self._tables_of = parts
        return self._tables if products == "float32" else self._tables.in_bytes

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the tables behind: they are large and cheap to build."""
        return {**self.__dict__, "_tables": None, "_tables_of": ()}


def _same(known: tuple[Tensor, ...], current: tuple[Tensor, ...]) -> bool:
    return len(known) == len(current) and all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(known, current, strict=True)
    )


def _check_encoding(
    dim: int,
    num_codebooks: int,
    logprob_weight: float,
    prefix_weights: Sequence[float] | None,
    channel_weights: Sequence[float] | None,
) -> None:
    if not 0 <= logprob_weight < math.inf:
        raise ValueError(f"logprob_weight={logprob_weight} must be a number from 0")
    if prefix_weights is not None and (
        len(prefix_weights) != num_codebooks or min(prefix_weights) < 0 or not prefix_weights[-1] > 0
    ):
        raise ValueError(
            f"prefix_weights={list(prefix_weights)}: give {num_codebooks} numbers from 0, the last one above 0"
        )
    if channel_weights is not None and (
        len(channel_weights) != dim or not all(0 < weight < math.inf for weight in channel_weights)
    ):
        raise ValueError(f"channel_weights: give {dim} finite numbers above 0, one for each channel")
