"""Beam search: hypotheses with the same units are one, whose probabilities add up over all alignments.

`beam_transducer` lets a frame have several units, as the transducer loss does and as greedy search here does.
`modified_beam_transducer` is the search of icefall and sherpa-onnx: a unit takes the whole frame. Here hypotheses are
merged before the best are chosen, so that no part of a text's probability falls out of the beam while another one
stays. `beam_ctc` is the prefix search of Hannun et al. (2014). All hypotheses of all utterances of a batch are searched
at once, and none depends on the other utterances.

Shape suffixes: B utterances, S the student's frames, K hypotheses, V different units, J joiner channels, C units of
context.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mvqkd.models.decoding.greedy import BLANK
from mvqkd.models.decoding.hypotheses import Hypotheses, Hypothesis

Predict = Callable[[Tensor], Tensor]
Join = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def beam_transducer(
    encoded_BSJ: Tensor,
    lengths_B: Tensor,
    *,
    predict: Predict,
    join: Join,
    context: int,
    beam: int = 4,
    max_units_per_frame: int = 4,
) -> list[list[Hypothesis]]:
    """The hypotheses of each utterance, at most `beam` of them, the most probable first.

    Time-synchronous: in each frame the hypotheses get a unit, and one more, as long as they are among the best, and
    each goes on to the next frame by a blank.

    Args:
        encoded_BSJ, lengths_B, predict, join, context, max_units_per_frame: as of `greedy_transducer`, but that
            `predict` and `join` are given B * K rows.
        beam: K, from 1.
    """
    _check_beam(beam)
    hypotheses = Hypotheses.start(len(lengths_B), beam, encoded_BSJ.device)
    for frame in range(encoded_BSJ.shape[1]):
        is_open_B = frame < lengths_B
        here, gone = hypotheses, []
        for number in range(max_units_per_frame + 1):
            log_prob_BKV = _log_prob(encoded_BSJ[:, frame], here, is_open_B, predict, join, context)
            extended_BKV = here.score_BK.unsqueeze(-1) + log_prob_BKV
            gone.append(here.scored(extended_BKV[..., BLANK].clone()))
            if number == max_units_per_frame:
                break
            extended_BKV[..., BLANK] = -math.inf
            best = extended_BKV.flatten(1).topk(beam, dim=1)
            # What is less probable than so many that have gone on is of no use, since it only becomes less.
            gone_BK = torch.cat([some.score_BK for some in gone], dim=1)
            least_B1 = gone_BK.topk(beam, dim=1).values[:, -1:]
            score_BK = best.values.masked_fill(best.values < least_B1, -math.inf)
            if not bool((score_BK > -math.inf).any()):
                break
            num_units = extended_BKV.shape[-1]
            here = here.taken(best.indices // num_units, best.indices % num_units, score_BK)
        hypotheses = Hypotheses.together(gone).merged().best(beam)
    return hypotheses.results()


@torch.no_grad()
def modified_beam_transducer(
    encoded_BSJ: Tensor,
    lengths_B: Tensor,
    *,
    predict: Predict,
    join: Join,
    context: int,
    beam: int = 4,
) -> list[list[Hypothesis]]:
    """As `beam_transducer`, with at most one unit in a frame, which takes the place of the blank.

    In the end the hypothesis counts most whose log-probability over the number of units, context included, is highest,
    as in icefall and sherpa-onnx. With a beam of 1 it finds what greedy search finds that takes one unit in a frame.
    """
    _check_beam(beam)
    hypotheses = Hypotheses.start(len(lengths_B), beam, encoded_BSJ.device)
    for frame in range(encoded_BSJ.shape[1]):
        is_open_B = frame < lengths_B
        log_prob_BKV = _log_prob(encoded_BSJ[:, frame], hypotheses, is_open_B, predict, join, context)
        extended_BKV = hypotheses.score_BK.unsqueeze(-1) + log_prob_BKV
        stay_BK = extended_BKV[..., BLANK].clone()
        extended_BKV[..., BLANK] = -math.inf
        gained_BK, extended_BKV = hypotheses.fold(extended_BKV)
        hypotheses, _, _ = _chosen(hypotheses, stay_BK.logaddexp(gained_BK), extended_BKV)
    return hypotheses.results(length_norm_from=context)


@torch.no_grad()
def beam_ctc(logits_BSV: Tensor, lengths_B: Tensor, *, beam: int = 4) -> list[list[Hypothesis]]:
    """The hypotheses of each utterance, at most `beam` of them, the most probable first.

    Args:
        logits_BSV, lengths_B: as of `greedy_ctc`.
        beam: K, from 1.
    """
    _check_beam(beam)
    log_prob_BSV = logits_BSV.float().log_softmax(-1)
    hypotheses = Hypotheses.start(len(lengths_B), beam, logits_BSV.device)
    # Alignments of a hypothesis that end in blank, and in its last unit; together they are its score.
    blank_BK, unit_BK = hypotheses.score_BK, torch.full_like(hypotheses.score_BK, -math.inf)
    for frame in range(log_prob_BSV.shape[1]):
        now_BKV = _only_blank(log_prob_BSV[:, frame].unsqueeze(1), frame < lengths_B)
        last_BK1 = hypotheses.history(1)
        again_BK1 = now_BKV.expand(-1, beam, -1).gather(2, last_BK1)
        extended_BKV = hypotheses.score_BK.unsqueeze(-1) + now_BKV
        # The same unit once more is another one only after a blank.
        extended_BKV = extended_BKV.scatter(2, last_BK1, blank_BK.unsqueeze(-1) + again_BK1)
        extended_BKV[..., BLANK] = -math.inf
        gained_BK, extended_BKV = hypotheses.fold(extended_BKV)
        stay_blank_BK = hypotheses.score_BK + now_BKV[..., BLANK]
        stay_unit_BK = (unit_BK + again_BK1.squeeze(-1)).logaddexp(gained_BK)
        hypotheses, source_BK, is_new_BK = _chosen(
            hypotheses, stay_blank_BK.logaddexp(stay_unit_BK), extended_BKV
        )
        blank_BK = stay_blank_BK.gather(1, source_BK).masked_fill(is_new_BK, -math.inf)
        unit_BK = torch.where(is_new_BK, hypotheses.score_BK, stay_unit_BK.gather(1, source_BK))
    return hypotheses.results()


def _chosen(
    hypotheses: Hypotheses, stay_BK: Tensor, extended_BKV: Tensor
) -> tuple[Hypotheses, Tensor, Tensor]:
    """The most probable of the hypotheses as they are and of those with one unit more; for each of them from which one
    it came, and whether it has one more."""
    num_hypotheses, num_units = extended_BKV.shape[1:]
    best = torch.cat([stay_BK, extended_BKV.flatten(1)], dim=1).topk(num_hypotheses, dim=1)
    extension_BK = best.indices - num_hypotheses
    is_new_BK = extension_BK >= 0
    source_BK = torch.where(is_new_BK, extension_BK // num_units, best.indices)
    unit_BK = torch.where(is_new_BK, extension_BK % num_units, BLANK)
    return hypotheses.taken(source_BK, unit_BK, best.values), source_BK, is_new_BK


def _log_prob(
    encoded_BJ: Tensor, here: Hypotheses, is_open_B: Tensor, predict: Predict, join: Join, context: int
) -> Tensor:
    """(B, K, V) of the next unit of each hypothesis."""
    shape = here.score_BK.shape
    encoded = encoded_BJ.unsqueeze(1).expand(-1, shape[1], -1).flatten(0, 1)
    logits = join(encoded, predict(here.history(context).flatten(0, 1)))
    return _only_blank(logits.float().log_softmax(-1).unflatten(0, shape), is_open_B)


def _only_blank(log_prob_BKV: Tensor, is_open_B: Tensor) -> Tensor:
    """The same, but that blank is sure beyond the end of an utterance, so that nothing changes there."""
    closed_V = torch.full_like(log_prob_BKV[0, 0], -math.inf)
    closed_V[BLANK] = 0.0
    return torch.where(is_open_B[:, None, None], log_prob_BKV, closed_V)


def _check_beam(beam: int) -> None:
    if beam < 1:
        raise ValueError(f"a beam of {beam} holds no hypothesis; decode.beam is a number from 1")
