"""Codes and RRL of many utterances: what does not change between calls is done once, and no host waits.

Shape suffixes: B utterances, F frames of all, N codebooks, M entries of all, D embedding dimension.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mvqkd.models.precision import full_float32_products
from mvqkd.models.quantizer.metrics import rrl_of_sums, sums_of_frames
from mvqkd.models.quantizer.quantizer import Quantizer
from mvqkd.models.quantizer.search.choose import choose_search
from mvqkd.models.quantizer.search.effort import SEARCHES, Effort

# On the CPU as many as stay in a core's cache with their reconstructions.
_FRAMES_AT_ONCE = {"cpu": 256}


class Coder:
    """What `Quantizer.encode` and `rrl` give, for frames by the million.

    It is made of the weights as they are now. On CUDA a call only queues work: nothing is checked on the host, and
    nothing waits for the device, where the compiled search runs.

    Args:
        quantizer: whose codes; it is kept, and its device is the coder's.
        search: how codes are searched, a name out of `SEARCHES`; "full" gives the codes of `Quantizer.encode`.

    Raises:
        ValueError: an unknown search.
    """

    def __init__(self, quantizer: Quantizer, *, search: str = "full") -> None:
        if search not in SEARCHES:
            raise ValueError(f"search {search!r} is unknown: choose one of {', '.join(SEARCHES)}")
        self.quantizer = quantizer
        self._effort = Effort.of_passes(SEARCHES[search].passes, quantizer.num_codebooks)
        self._code_dtype = torch.uint8 if quantizer.codebook_size <= 256 else torch.int64
        with torch.no_grad(), full_float32_products():
            self._tables = quantizer.search_tables(SEARCHES[search].products)
            self._mean_D = quantizer.get_data_mean()
            self._centers_MD = quantizer.get_centers().reshape(-1, quantizer.dim)
            first_N = torch.arange(quantizer.num_codebooks, device=self._mean_D.device)
            self._first_N = first_N * quantizer.codebook_size
        # Compiled and tried now, for which the host waits.
        choose_search(self._mean_D.device)

    @torch.no_grad()
    def __call__(self, x_FD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Code the frames of utterances, one after the other.

        Args:
            x_FD: of any float dtype, on the quantizer's device.
            lengths_B: int64, frames of each utterance, on that device; their sum must be F, which is not checked.

        Returns:
            Codes (F, N), uint8 or, of more than 256 entries, int64; and the RRL of each utterance about the mean of
            the training data, float64 (B,). It is NaN where an utterance holds NaN, infinity or numbers too large
            to be coded, and the codes of such frames mean nothing.

        Raises:
            ValueError: wrong dimension or dtype.
        """
        if x_FD.ndim != 2 or x_FD.shape[1] != self.quantizer.dim or not x_FD.is_floating_point():
            raise ValueError(
                f"x is {x_FD.dtype} of shape {tuple(x_FD.shape)}; this quantizer takes floats (F, {self.quantizer.dim})"
            )
        with torch.autocast(x_FD.device.type, enabled=False), full_float32_products():
            x_FD = x_FD.to(self._mean_D.dtype)
            codable_F = x_FD.abs().amax(dim=1) <= self._tables.largest
            safe_FD = x_FD
            if x_FD.device.type != "cpu" or not bool(codable_F.all()):
                safe_FD = x_FD.where(codable_F.unsqueeze(1), 0.0)
            codes_FN = self._tables.codes_of_checked(safe_FD, self._effort)
            error_F, variance_F = self._sums(safe_FD, codes_FN)
            rrl_B = rrl_of_sums(error_F.where(codable_F, torch.nan), variance_F, lengths_B)
        return codes_FN.to(self._code_dtype), rrl_B

    def _sums(self, x_FD: Tensor, codes_FN: Tensor) -> tuple[Tensor, Tensor]:
        """`sums_of_frames` of the frames and what their codes stand for, which is never in memory as a whole."""
        at_once = _FRAMES_AT_ONCE.get(x_FD.device.type, 2**16)
        sums = []
        for block_FD, block_FN in zip(x_FD.split(at_once), codes_FN.split(at_once), strict=True):
            x_hat_FD = F.embedding_bag(block_FN + self._first_N, self._centers_MD, mode="sum")
            sums.append(sums_of_frames(block_FD, x_hat_FD, self._mean_D))
        error, variance = zip(*sums, strict=True)
        return torch.cat(error), torch.cat(variance)
