"""How well a quantizer codes what a teacher makes of some audio, added up utterance by utterance.

Shape suffixes: T frames of an utterance, F frames of several, B utterances, D embedding dimension, N codebooks,
K entries.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mvqkd.models.quantizer import Coder
from mvqkd.workers.embed import Embedded
from mvqkd.workers.feed import LeftOut

ENCODE_FRAMES = 8192


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How a quantizer codes the sample.

    Attributes:
        frames: of the sample, those of its first pass.
        rrl: relative reconstruction loss, with the sample's own mean.
        usage_entropy_bits: of each codebook, (N,); used_codes: entries of each that occur, (N,).
    """

    frames: int
    rrl: float
    usage_entropy_bits: list[float]
    used_codes: list[int]


class Sums:
    """Figures of what has been embedded; frames wait until there are many, as in extraction.

    Args:
        coder: of the quantizer; None where there is none yet.

    Attributes:
        seconds: of audio that was embedded.
        coding_s: time that the quantizer took; judging_s: time that is no part of an extraction.
        utterances, left_out: of the first pass; problems: of the first few that were left out.
    """

    def __init__(self, coder: Coder | None) -> None:
        self._coder = coder
        self.seconds = self.coding_s = self.judging_s = 0.0
        self.utterances = self.left_out = 0
        self.problems: list[str] = []
        self._waiting: list[tuple[Tensor, bool]] = []
        self._frames, self._error, self._square = 0, 0.0, 0.0
        self._sum_D: Tensor | None = None
        self._counts_NK: Tensor | None = None

    def add(self, result: Embedded | LeftOut, *, first_pass: bool) -> None:
        """An embedded utterance, or one that was left out."""
        self.utterances += first_pass
        if not isinstance(result, Embedded):
            self.left_out += first_pass
            if first_pass and len(self.problems) < 3:
                self.problems.append(result.message)
            return
        self.seconds += result.cut.duration
        self._waiting.append((result.embeddings_TD, first_pass))
        if sum(len(x_TD) for x_TD, _ in self._waiting) >= ENCODE_FRAMES:
            self.code()

    def code(self) -> None:
        """Code the frames that wait."""
        waiting, self._waiting = self._waiting, []
        if self._coder is None or not waiting:
            return
        began = time.perf_counter()
        x_FD = torch.cat([x_TD for x_TD, _ in waiting])
        lengths_B = torch.tensor([len(x_TD) for x_TD, _ in waiting], device=x_FD.device)
        codes_FN, _ = self._coder(x_FD, lengths_B)
        codes_FN.cpu()  # which waits for the device
        self.coding_s += time.perf_counter() - began
        num_first = sum(len(x_TD) for x_TD, first_pass in waiting if first_pass)
        if num_first:
            began = time.perf_counter()
            self._count(x_FD[:num_first])
            self.judging_s += time.perf_counter() - began

    def _count(self, x_FD: Tensor) -> None:
        """With the search that the fit is judged by, whatever that of extraction is."""
        assert self._coder is not None, "asked before"
        quantizer = self._coder.quantizer
        codes_FN = quantizer.encode(x_FD, as_bytes=False).long()
        x_hat_FD = quantizer.decode(codes_FN).detach().double()
        x_FD = x_FD.double()
        self._frames += len(x_FD)
        self._error += float((x_FD - x_hat_FD).square().sum())
        self._square += float(x_FD.square().sum())
        sum_D = x_FD.sum(dim=0)
        self._sum_D = sum_D if self._sum_D is None else self._sum_D + sum_D
        size = quantizer.codebook_size
        counts_NK = torch.stack([torch.bincount(codes_F, minlength=size) for codes_F in codes_FN.T])
        self._counts_NK = counts_NK if self._counts_NK is None else self._counts_NK + counts_NK

    def quality(self) -> Quality | None:
        """Of the frames of the first pass; None without a quantizer."""
        if self._counts_NK is None or self._sum_D is None:
            return None
        variance = self._square - float(self._sum_D.square().sum()) / self._frames
        share_NK = self._counts_NK.double() / self._frames
        bits_N = torch.special.entr(share_NK).sum(dim=1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
        return Quality(
            frames=self._frames,
            rrl=self._error / (variance + 1e-20),
            usage_entropy_bits=bits_N.tolist(),
            used_codes=(self._counts_NK > 0).sum(dim=1).tolist(),
        )
