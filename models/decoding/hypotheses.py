"""The hypotheses of a beam search: texts so far of all utterances of a batch, in tensors.

Shape suffixes: B utterances, K hypotheses (I, J where pairs of them are meant), V different units, C units of context,
U units of the longest hypothesis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from mvqkd.models.decoding.greedy import BLANK

_NONE = -1


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """Units without blanks, and the logarithm of the probability that the search found for them."""

    units: list[int]
    log_prob: float


@dataclass(frozen=True, kw_only=True)
class Hypotheses:
    """K hypotheses of each of B utterances.

    Attributes:
        units_BKU: int64, -1 beyond the end of a hypothesis.
        lengths_BK: int64, units of each.
        score_BK: float32 log-probabilities; -inf of places that hold no hypothesis.
    """

    units_BKU: Tensor
    lengths_BK: Tensor
    score_BK: Tensor

    @classmethod
    def start(cls, batch: int, beam: int, device: torch.device) -> Self:
        """The empty hypothesis of each utterance, and places for others."""
        score_BK = torch.full((batch, beam), -math.inf, device=device)
        score_BK[:, 0] = 0.0
        return cls(
            units_BKU=torch.zeros(batch, beam, 0, dtype=torch.long, device=device),
            lengths_BK=torch.zeros(batch, beam, dtype=torch.long, device=device),
            score_BK=score_BK,
        )

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """The hypotheses of several, one after the other."""
        most = max(part.units_BKU.shape[-1] for part in parts)
        units = [F.pad(part.units_BKU, (0, most - part.units_BKU.shape[-1]), value=_NONE) for part in parts]
        return cls(
            units_BKU=torch.cat(units, dim=1),
            lengths_BK=torch.cat([part.lengths_BK for part in parts], dim=1),
            score_BK=torch.cat([part.score_BK for part in parts], dim=1),
        )

    def scored(self, score_BK: Tensor) -> Self:
        """The same with other log-probabilities."""
        return replace(self, score_BK=score_BK)

    def history(self, context: int) -> Tensor:
        """int64 (B, K, C): the last units, blank before the first."""
        position_BKC = self.lengths_BK.unsqueeze(-1) + torch.arange(
            -context, 0, device=self.lengths_BK.device
        )
        if not self.units_BKU.shape[-1]:
            return torch.full_like(position_BKC, BLANK)
        units_BKC = self.units_BKU.gather(2, position_BKC.clamp_min(0))
        return units_BKC.masked_fill(position_BKC < 0, BLANK)

    def taken(self, source_BK: Tensor, unit_BK: Tensor, score_BK: Tensor) -> Self:
        """Other ones made of these: each of the one at `source_BK` and a unit more, or none where it is blank."""
        lengths_BK = self.lengths_BK.gather(1, source_BK)
        units_BKU = F.pad(self.units_BKU, (0, 1), value=_NONE)
        units_BKU = units_BKU.gather(1, source_BK.unsqueeze(-1).expand(-1, -1, units_BKU.shape[-1]))
        # Beyond its end a hypothesis holds no units, so writing none there changes nothing.
        new_BK1 = unit_BK.masked_fill(unit_BK == BLANK, _NONE).unsqueeze(-1)
        units_BKU = units_BKU.scatter(2, lengths_BK.unsqueeze(-1), new_BK1)
        lengths_BK = lengths_BK + (unit_BK != BLANK)
        most = int(lengths_BK.max()) if lengths_BK.numel() else 0
        return replace(self, units_BKU=units_BKU[..., :most], lengths_BK=lengths_BK, score_BK=score_BK)

    def best(self, num_hypotheses: int) -> Self:
        """The most probable ones, in order."""
        best = self.score_BK.topk(num_hypotheses, dim=1)
        return self.taken(best.indices, torch.full_like(best.indices, BLANK), best.values)

    def merged(self) -> Self:
        """Of those with the same units the first one has the probability of all, the others none."""
        same_BIJ = (self.units_BKU.unsqueeze(2) == self.units_BKU.unsqueeze(1)).all(dim=-1)
        all_BIJ = self.score_BK.unsqueeze(1).masked_fill(~same_BIJ, -math.inf)
        first_BK = same_BIJ.int().argmax(dim=-1)
        is_first_BK = first_BK == torch.arange(same_BIJ.shape[1], device=first_BK.device)
        return self.scored(all_BIJ.logsumexp(dim=-1).masked_fill(~is_first_BK, -math.inf))

    def fold(self, extended_BKV: Tensor) -> tuple[Tensor, Tensor]:
        """Where a hypothesis with one unit more is another one of these: what that one gains, and the rest.

        Args:
            extended_BKV: log-probabilities of each hypothesis with each unit more.

        Returns:
            (B, K) log-probabilities to be added to those of the hypotheses that stay as they are, and (B, K, V) with
            -inf in their places.
        """
        last_BIJ = self.history(1)[..., 0].unsqueeze(1).expand(-1, self.score_BK.shape[1], -1)
        pairs_BIJ = self._one_more()
        gained_BIJ = extended_BKV.gather(2, last_BIJ).masked_fill(~pairs_BIJ, -math.inf)
        taken_BKV = torch.zeros_like(extended_BKV).scatter_add_(2, last_BIJ, pairs_BIJ.to(extended_BKV))
        return gained_BIJ.logsumexp(dim=1), extended_BKV.masked_fill(taken_BKV > 0, -math.inf)

    def _one_more(self) -> Tensor:
        """bool (B, I, J): hypothesis J is hypothesis I and one unit."""
        place_U = torch.arange(self.units_BKU.shape[-1], device=self.units_BKU.device)
        without_last_BKU = self.units_BKU.masked_fill(place_U >= self.lengths_BK.unsqueeze(-1) - 1, _NONE)
        same_BIJ = (self.units_BKU.unsqueeze(2) == without_last_BKU.unsqueeze(1)).all(dim=-1)
        longer_BIJ = self.lengths_BK.unsqueeze(2) + 1 == self.lengths_BK.unsqueeze(1)
        is_there_BK = self.score_BK > -math.inf
        return same_BIJ & longer_BIJ & is_there_BK.unsqueeze(2) & is_there_BK.unsqueeze(1)

    def results(self, *, length_norm_from: int | None = None) -> list[list[Hypothesis]]:
        """Of each utterance, best first; by log-probability, or by it over the number of units and so many more."""
        order_BK = self.score_BK
        if length_norm_from is not None:
            order_BK = order_BK / (self.lengths_BK + length_norm_from)
        best_BK = order_BK.argsort(dim=1, descending=True, stable=True).tolist()
        rows = zip(
            best_BK, self.units_BKU.tolist(), self.lengths_BK.tolist(), self.score_BK.tolist(), strict=True
        )
        return [
            [
                Hypothesis(units=units[k][: lengths[k]], log_prob=scores[k])
                for k in best
                if scores[k] > -math.inf
            ]
            for best, units, lengths, scores in rows
        ]
