"""Beam search over all alignments of a text: hypotheses with the same units are one, whose probabilities add up.

For transducers it is the modified beam search of icefall: at most one unit in a frame. Hypotheses are merged before
the best are chosen, so that no part of a text's probability falls out of the beam while another one stays. For CTC it
is the prefix search of Hannun et al. (2014). All utterances of a batch and all their hypotheses are searched at once.

Shape suffixes: B utterances, S the student's frames, K hypotheses (I, J where pairs of them are meant), V different
units, J joiner channels, C units of context, U units of a hypothesis so far.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mvqkd.models.decoding.greedy import BLANK

_NONE = -1


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """Units without blanks, and the logarithm of the probability that the search found for them."""

    units: list[int]
    log_prob: float


class _Beam:
    """The units of the hypotheses of a batch, and which of them are others with one unit more.

    In the beginning one hypothesis of each utterance is alive, the empty one; the scores of the rest are -inf.
    """

    def __init__(self, batch: int, beam: int, most_units: int, device: torch.device) -> None:
        self.units_BKU = torch.full((batch, beam, most_units), _NONE, dtype=torch.long, device=device)
        self.lengths_BK = torch.zeros(batch, beam, dtype=torch.long, device=device)
        self.score_BK = torch.full((batch, beam), -math.inf, device=device)
        self.score_BK[:, 0] = 0.0
        self._most = 0

    @property
    def last_BK(self) -> Tensor:
        """The last unit of each hypothesis; blank of an empty one."""
        return self.history(1)[..., 0]

    def history(self, context: int) -> Tensor:
        """int64 (B, K, C): the last units, blank before the first."""
        position_BKC = self.lengths_BK.unsqueeze(-1) + torch.arange(-context, 0, device=self.lengths_BK.device)
        if not self.units_BKU.shape[-1]:
            return torch.full_like(position_BKC, BLANK)
        units_BKC = self.units_BKU.gather(2, position_BKC.clamp_min(0))
        return units_BKC.masked_fill(position_BKC < 0, BLANK)

    def fold(self, extended_BKV: Tensor) -> tuple[Tensor, Tensor]:
        """Where a hypothesis with one unit more is another hypothesis of the beam: what that one gains, and the rest.

        Args:
            extended_BKV: log-probabilities of each hypothesis with each unit more.

        Returns:
            (B, K) log-probabilities to be added to those of the hypotheses that stay as they are, and (B, K, V) with
            -inf in their places.
        """
        num_hypotheses = self.score_BK.shape[1]
        last_BIJ = self.last_BK.unsqueeze(1).expand(-1, num_hypotheses, -1)
        pairs_BIJ = self._one_more()
        gained_BIJ = extended_BKV.gather(2, last_BIJ).masked_fill(~pairs_BIJ, -math.inf)
        taken_BKV = torch.zeros_like(extended_BKV).scatter_add_(2, last_BIJ, pairs_BIJ.to(extended_BKV))
        return gained_BIJ.logsumexp(dim=1), extended_BKV.masked_fill(taken_BKV > 0, -math.inf)

    def _one_more(self) -> Tensor:
        """bool (B, I, J): hypothesis J is hypothesis I and one unit."""
        units_BKU = self.units_BKU[..., : self._most]
        place_U = torch.arange(self._most, device=units_BKU.device)
        without_last_BKU = units_BKU.masked_fill(place_U >= self.lengths_BK.unsqueeze(-1) - 1, _NONE)
        same_BIJ = (units_BKU.unsqueeze(2) == without_last_BKU.unsqueeze(1)).all(dim=-1)
        alive_BK = self.score_BK > -math.inf
        longer_BIJ = self.lengths_BK.unsqueeze(2) + 1 == self.lengths_BK.unsqueeze(1)
        return same_BIJ & longer_BIJ & alive_BK.unsqueeze(2) & alive_BK.unsqueeze(1)

    def choose(self, stay_BK: Tensor, extended_BKV: Tensor, open_B: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the most probable of the hypotheses as they are and of those with one unit more.

        Args:
            open_B: utterances that this is for; the others stay as they are.

        Returns:
            (B, K) from which hypothesis each one came, and the unit that it got, or -1.
        """
        num_hypotheses, num_units = extended_BKV.shape[1:]
        best = torch.cat([stay_BK, extended_BKV.flatten(1)], dim=1).topk(num_hypotheses, dim=1)
        extension_BK = best.indices - num_hypotheses
        is_new_BK = extension_BK >= 0
        source_BK = torch.where(is_new_BK, extension_BK // num_units, best.indices)
        unit_BK = torch.where(is_new_BK, extension_BK % num_units, _NONE)
        is_open_B1 = open_B.unsqueeze(1)
        as_it_is_BK = torch.arange(num_hypotheses, device=stay_BK.device).expand_as(source_BK)
        source_BK = torch.where(is_open_B1, source_BK, as_it_is_BK)
        unit_BK = torch.where(is_open_B1, unit_BK, _NONE)
        self.score_BK = torch.where(is_open_B1, best.values, self.score_BK)
        self.units_BKU = self.units_BKU.gather(
            1, source_BK.unsqueeze(-1).expand(-1, -1, self.units_BKU.shape[-1])
        )
        lengths_BK = self.lengths_BK.gather(1, source_BK)
        # Beyond its end a hypothesis holds no units, so writing none there changes nothing.
        end_BK1 = lengths_BK.unsqueeze(-1).clamp_max(self.units_BKU.shape[-1] - 1)
        kept_BK1 = self.units_BKU.gather(2, end_BK1)
        new_BK1 = torch.where(unit_BK.unsqueeze(-1) >= 0, unit_BK.unsqueeze(-1), kept_BK1)
        self.units_BKU = self.units_BKU.scatter(2, end_BK1, new_BK1)
        self.lengths_BK = lengths_BK + (unit_BK >= 0)
        self._most = min(self._most + 1, self.units_BKU.shape[-1])
        return source_BK, unit_BK

    def results(self, length_norm_from: int | None) -> list[list[Hypothesis]]:
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


@torch.no_grad()
def beam_transducer(
    encoded_BSJ: Tensor,
    lengths_B: Tensor,
    *,
    predict: Callable[[Tensor], Tensor],
    join: Callable[[Tensor, Tensor], Tensor],
    context: int,
    beam: int = 4,
    length_norm: bool = True,
) -> list[list[Hypothesis]]:
    """The hypotheses of each utterance, at most `beam` of them, best first.

    Args:
        encoded_BSJ, lengths_B, predict, join, context: as of `greedy_transducer`, but that `predict` and `join` are
            given B * K rows.
        beam: K, from 1. With 1 it finds what greedy search finds that takes one unit in a frame.
        length_norm: whether the log-probability over the number of units, context included, is what decides in the
            end, as in icefall and sherpa-onnx; else the log-probability.
    """
    _check_beam(beam)
    batch, num_frames, channels = encoded_BSJ.shape
    hypotheses = _Beam(batch, beam, num_frames, encoded_BSJ.device)
    for frame in range(num_frames):
        predicted = predict(hypotheses.history(context).flatten(0, 1))
        encoded = encoded_BSJ[:, frame].unsqueeze(1).expand(-1, beam, -1).reshape(-1, channels)
        log_prob_BKV = join(encoded, predicted).float().log_softmax(-1).unflatten(0, (batch, beam))
        extended_BKV = hypotheses.score_BK.unsqueeze(-1) + log_prob_BKV
        stay_BK = extended_BKV[..., BLANK].clone()
        extended_BKV[..., BLANK] = -math.inf
        gained_BK, extended_BKV = hypotheses.fold(extended_BKV)
        hypotheses.choose(stay_BK.logaddexp(gained_BK), extended_BKV, frame < lengths_B)
    return hypotheses.results(context if length_norm else None)


@torch.no_grad()
def beam_ctc(logits_BSV: Tensor, lengths_B: Tensor, *, beam: int = 4) -> list[list[Hypothesis]]:
    """The hypotheses of each utterance, at most `beam` of them, the most probable first.

    Args:
        logits_BSV, lengths_B: as of `greedy_ctc`.
        beam: K, from 1.
    """
    _check_beam(beam)
    log_prob_BSV = logits_BSV.float().log_softmax(-1)
    batch, num_frames, _ = log_prob_BSV.shape
    hypotheses = _Beam(batch, beam, num_frames, logits_BSV.device)
    # Alignments of a hypothesis that end in blank, and in its last unit; together they are its score.
    blank_BK, unit_BK = hypotheses.score_BK, torch.full_like(hypotheses.score_BK, -math.inf)
    for frame in range(num_frames):
        now_BKV = log_prob_BSV[:, frame].unsqueeze(1)
        last_BK1 = hypotheses.last_BK.unsqueeze(-1)
        again_BK1 = now_BKV.expand(-1, beam, -1).gather(2, last_BK1)
        extended_BKV = hypotheses.score_BK.unsqueeze(-1) + now_BKV
        # The same unit once more is another one only after a blank.
        extended_BKV = extended_BKV.scatter(2, last_BK1, blank_BK.unsqueeze(-1) + again_BK1)
        extended_BKV[..., BLANK] = -math.inf
        gained_BK, extended_BKV = hypotheses.fold(extended_BKV)
        stay_blank_BK = hypotheses.score_BK + now_BKV[..., BLANK]
        stay_unit_BK = (unit_BK + again_BK1.squeeze(-1)).logaddexp(gained_BK)
        open_B = frame < lengths_B
        source_BK, new_BK = hypotheses.choose(stay_blank_BK.logaddexp(stay_unit_BK), extended_BKV, open_B)
        is_new_BK = new_BK >= 0
        after_blank_BK = stay_blank_BK.gather(1, source_BK).masked_fill(is_new_BK, -math.inf)
        after_unit_BK = torch.where(is_new_BK, hypotheses.score_BK, stay_unit_BK.gather(1, source_BK))
        blank_BK = torch.where(open_B.unsqueeze(1), after_blank_BK, blank_BK)
        unit_BK = torch.where(open_B.unsqueeze(1), after_unit_BK, unit_BK)
    return hypotheses.results(None)


def _check_beam(beam: int) -> None:
    if beam < 1:
        raise ValueError(f"a beam of {beam} holds no hypothesis; decode.beam is a number from 1")
