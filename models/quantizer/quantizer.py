"""A direct-sum quantizer: a frame is the sum of one center out of each codebook.

Same API and state-dict names as `multi_quantization` 0.1.1 (arXiv 2211.00508, section 3), so that its
checkpoints load and code written for it runs. The search over codes is our own (`search.py`).

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvqkd.models.precision import full_float32_products
from mvqkd.models.quantizer.packing import packed, unpacked
from mvqkd.models.quantizer.search.tables import Effort, SearchTables

SCALE_SPEED = 10.0
"""The learned scales enter as exp(10 * parameter): ten times their learning rate, as in the reference."""

_GUESSES_AT_ONCE = 256


class Quantizer(nn.Module):
    """N codebooks of K centers each, and a linear classifier that guesses a frame's codes.

    Args:
        dim: embedding dimension.
        codebook_size: entries per codebook, a power of two.
        num_codebooks: any number from 1.
        logprob_weight: squared error that one nat of the classifier's -log p is worth when codes are searched:
            above 0, codes that the classifier expects are preferred to others that are hardly nearer.
        prefix_weights: N numbers; encoding then minimises the sum over k of number k times the squared error of
            the first k codebooks' sum, so that the first codes alone are a code too. None: the whole sum counts.

    The last two say how to encode and are no part of the state dict, whose names are the reference's;
    `quantizer_to_arrays` keeps them. Parameters are initialised from torch's global generator; the id as well, so a
    seed fixes both.

    The tables of the search (see `search.py`; N * K squared numbers) are kept between calls and built anew
    when the centers have changed.

    Raises:
        ValueError: a size is impossible.
    """

    id_buf: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int,
        *,
        logprob_weight: float = 0.0,
        prefix_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or num_codebooks < 1:
            raise ValueError(f"dim={dim} and num_codebooks={num_codebooks} must be at least 1")
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            raise ValueError(f"codebook_size={codebook_size} must be a power of two, such as 16 or 256")
        if not 0 <= logprob_weight < math.inf:
            raise ValueError(f"logprob_weight={logprob_weight} must be a number from 0")
        if prefix_weights is not None and (
            len(prefix_weights) != num_codebooks or min(prefix_weights) < 0 or not prefix_weights[-1] > 0
        ):
            raise ValueError(
                f"prefix_weights={list(prefix_weights)}: give {num_codebooks} numbers from 0, the last one above 0"
            )
        self.logprob_weight = logprob_weight
        self.prefix_weights = None if prefix_weights is None else tuple(prefix_weights)
        self.dim = dim
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.to_logits = nn.Linear(dim, codebook_size * num_codebooks)
        initial_MD = self.to_logits.weight.detach().clone()
        self.centers = nn.Parameter(initial_MD.view(num_codebooks, codebook_size, dim))
        self.logits_scale = nn.Parameter(torch.zeros(()))
        self.centers_scale = nn.Parameter(torch.zeros(()))
        digits = "0123456789abcdef"
        self.register_buffer(
            "id_buf", _id_tensor("".join(digits[i] for i in torch.randint(16, (8,)).tolist()))
        )
        self._tables: SearchTables | None = None
        self._tables_of: tuple[Tensor, ...] = ()
        self._tables_rank: int | None = None

    def get_id(self) -> str:
        """Eight hex digits that name this quantizer, kept in the state dict."""
        return bytes(self.id_buf.tolist()).decode("ascii")

    def set_id_from_weights(self) -> str:
        """Derive the id from the weights and the way of encoding (SHA-256), so that equal ones have equal ids."""
        digest = hashlib.sha256()
        if self.logprob_weight or self.prefix_weights:
            digest.update(repr((self.logprob_weight, self.prefix_weights)).encode())
        for name, tensor in sorted(self.named_parameters()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        quantizer_id = digest.hexdigest()[:8]
        self.id_buf.copy_(_id_tensor(quantizer_id))
        return quantizer_id

    def show_init_invocation(self) -> str:
        """The call that builds a quantizer of these sizes, as text."""
        return (
            f"quantization.Quantizer(dim={self.dim}, codebook_size={self.codebook_size}, "
            f"num_codebooks={self.num_codebooks})"
        )

    def get_centers(self) -> Tensor:
        """The centers as they enter the sum: (N, K, D)."""
        return (self.centers_scale * SCALE_SPEED).exp() * self.centers

    def get_data_mean(self) -> Tensor:
        """The mean of the training data as the codebooks have it, entries taken as equally used: (D,)."""
        return self.get_centers().mean(dim=1).sum(dim=0).detach()

    def compute_codebook_correlations(self) -> Tensor:
        """How much each pair of codebooks shares a subspace: (N, N), in 0..1, ones on the diagonal.

        tr(S_i S_j) / sqrt(tr(S_i S_i) tr(S_j S_j)) with S_i the scatter of codebook i about its mean.
        tr(S_i S_j) is the squared Frobenius norm of the inner products between the two codebooks, so no
        (D, D) matrix is formed.
        """
        centers_NKD = self.get_centers().detach()
        centered_MD = (centers_NKD - centers_NKD.mean(dim=1, keepdim=True)).reshape(-1, self.dim)
        cross_NN = centered_MD.new_empty(self.num_codebooks, self.num_codebooks)
        for i, rows_KD in enumerate(centered_MD.split(self.codebook_size)):
            gram_KM = rows_KD @ centered_MD.t()
            cross_NN[i] = gram_KM.square().view(-1, self.num_codebooks, self.codebook_size).sum(dim=(0, 2))
        scale_N = cross_NN.diagonal().rsqrt()
        return cross_NN * scale_N.unsqueeze(0) * scale_N.unsqueeze(1)

    def get_product_quantizer(self) -> "Quantizer":
        """A quantizer of N / 2 codebooks of K * K entries: each entry the sum of a pair's entries.

        It represents the same vectors; entry k1 * K + k2 of codebook n stands for entries k1 and k2 of
        codebooks 2n and 2n + 1.

        Raises:
            ValueError: the number of codebooks is odd.
        """
        if self.num_codebooks % 2:
            raise ValueError(f"{self.num_codebooks} codebooks cannot be paired; use an even number")
        pairs, size = self.num_codebooks // 2, self.codebook_size
        with torch.random.fork_rng(devices=[]):
            product = Quantizer(self.dim, size * size, pairs)
        product.to(self.centers.device, self.centers.dtype)

        def pair_sums(rows_MX: Tensor) -> Tensor:
            first_and_second = rows_MX.view(pairs, 2, size, -1)
            return first_and_second[:, 0].unsqueeze(2) + first_and_second[:, 1].unsqueeze(1)

        with torch.no_grad():
            product.logits_scale.copy_(self.logits_scale)
            product.centers_scale.copy_(self.centers_scale)
            product.to_logits.weight.copy_(pair_sums(self.to_logits.weight).view(-1, self.dim))
            product.to_logits.bias.copy_(pair_sums(self.to_logits.bias).view(-1))
            product.centers.copy_(pair_sums(self.centers).view_as(product.centers))
        return product

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
        with torch.random.fork_rng(devices=[]):
            part = Quantizer(
                self.dim,
                self.codebook_size,
                num_codebooks,
                logprob_weight=self.logprob_weight,
                prefix_weights=prefix_weights,
            )
        part.to(self.centers.device, self.centers.dtype)
        entries = num_codebooks * self.codebook_size
        with torch.no_grad():
            part.logits_scale.copy_(self.logits_scale)
            part.centers_scale.copy_(self.centers_scale)
            part.to_logits.weight.copy_(self.to_logits.weight[:entries])
            part.to_logits.bias.copy_(self.to_logits.bias[:entries])
            part.centers.copy_(self.centers[:num_codebooks])
        part.set_id_from_weights()
        return part.eval()

    def decode(self, indexes: Tensor) -> Tensor:
        """The frames that codes stand for.

        Args:
            indexes: integers (*, N), or fewer columns when several codes were packed to a byte by
                `encode(as_bytes=True)`.

        Returns: (*, D), differentiable with respect to the centers.

        Raises:
            ValueError: the last dimension fits no packing of N codes, or a code is out of range.
        """
        codes_BN = unpacked(
            indexes.reshape(-1, indexes.shape[-1]).long(), self.num_codebooks, self.codebook_size
        )
        if codes_BN.numel() and (int(codes_BN.min()) < 0 or int(codes_BN.max()) >= self.codebook_size):
            raise ValueError(
                f"codes lie in {int(codes_BN.min())}..{int(codes_BN.max())}, not in "
                f"0..{self.codebook_size - 1}; drop padding frames and check which quantizer made them"
            )
        return self._sum_of_centers(codes_BN).view(*indexes.shape[:-1], self.dim)

    def encode(
        self, x: Tensor, refine_indexes_iters: int = 5, as_bytes: bool = True, *, rank: int | None = None
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
            rank: take the products of frames and centers through this many directions alone: fewer multiplications
                (half of them for 192 of 512), codes that are a little worse. None is exact.

        Returns: (*, N) int64, or uint8 with (*, N / codes per byte).

        Raises:
            ValueError: wrong dimension or dtype, NaN or infinity (the rows are named), a rank that is none, or
                `as_bytes` with more than 256 entries.
        """
        if as_bytes and self.codebook_size > 256:
            raise ValueError(f"codes of {self.codebook_size} entries fit no byte; use as_bytes=False")
        if rank is not None and not 1 <= rank <= self.dim:
            raise ValueError(f"rank={rank} must lie in 1..{self.dim}, the embedding dimension")
        x_BD = self._checked_frames(x)
        # No TF32 either: with ten bits of mantissa near codes would be told apart by rounding.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_float32_products():
            if refine_indexes_iters > 0:
                effort = Effort.of_passes(refine_indexes_iters, self.num_codebooks)
                codes_BN = self._search_tables(rank).codes(x_BD, effort)
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
                codes_BN = self._search_tables().codes(x_BD, effort, codes_BN)
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
            self._missing_entropy(logprobs_BNK.exp().mean(dim=0)),
            self._missing_entropy(usage_NK),
        )

    def _missing_entropy(self, share_NK: Tensor) -> Tensor:
        share_NK = share_NK + 1e-20
        entropy = -(share_NK * share_NK.log()).sum(dim=1).mean()
        return 1.0 - entropy / math.log(self.codebook_size)

    def _logits(self, x_BD: Tensor) -> Tensor:
        logits_BM = self.to_logits((self.logits_scale * SCALE_SPEED).exp() * x_BD)
        return logits_BM.view(-1, self.num_codebooks, self.codebook_size)

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
    def _search_tables(self, rank: int | None = None) -> SearchTables:
        parts: tuple[Tensor, ...] = (self.get_centers(),)
        if self.logprob_weight:
            scale = (self.logits_scale * SCALE_SPEED).exp()
            parts += (scale * self.to_logits.weight, self.to_logits.bias.clone())
        # Compared by value: fused optimizers and writes through `.data` leave no trace in version counters.
        if self._tables is None or self._tables_rank != rank or not _same(self._tables_of, parts):
            self._tables = None  # so that two sets are never held at once
            self._tables = SearchTables.build(
                parts[0],
                logits=(parts[1], parts[2]) if self.logprob_weight else None,
                logprob_weight=self.logprob_weight,
                prefix_weights=self.prefix_weights,
                rank=rank,
            )
            self._tables_of, self._tables_rank = parts, rank
        return self._tables

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the tables behind: they are large and cheap to build."""
        return {**self.__dict__, "_tables": None, "_tables_of": ()}

    def _rows(self, codes_BN: Tensor) -> Tensor:
        return codes_BN + torch.arange(self.num_codebooks, device=codes_BN.device) * self.codebook_size

    def _sum_of_centers(self, codes_BN: Tensor) -> Tensor:
        sum_BD = F.embedding_bag(self._rows(codes_BN), self.centers.view(-1, self.dim), mode="sum")
        return sum_BD * (self.centers_scale * SCALE_SPEED).exp()


def _id_tensor(quantizer_id: str) -> Tensor:
    return torch.tensor(list(quantizer_id.encode("ascii")), dtype=torch.uint8)


def _same(known: tuple[Tensor, ...], current: tuple[Tensor, ...]) -> bool:
    return len(known) == len(current) and all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(known, current, strict=True)
    )
