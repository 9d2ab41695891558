"""The most probable unit at every step.

Shape suffixes: B utterances, S the student's frames, J joiner channels, V different units, C units of context.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLANK = 0
"""The unit that stands for none, of every student."""


def greedy_transducer(
    encoded_BSJ: Tensor,
    lengths_B: Tensor,
    *,
    predict: Callable[[Tensor], Tensor],
    join: Callable[[Tensor, Tensor], Tensor],
    context: int,
    max_units_per_frame: int = 4,
) -> list[list[int]]:
    """One list of units (without blanks) for each utterance.

    Args:
        encoded_BSJ: the encoder's output as `join` takes it.
        lengths_B: int64 frames that count.
        predict: the last `context` units, int64 (B, C), blank before the first, to what `join` takes, (B, J).
        join: one frame of the encoder and of `predict`, (B, J) each, to logits (B, V).
        context: C.
        max_units_per_frame: after so many the search goes on to the next frame.
    """
    batch = encoded_BSJ.shape[0]
    history_BC = torch.full((batch, context), BLANK, dtype=torch.long, device=encoded_BSJ.device)
    predicted_BJ = predict(history_BC)
    hypotheses: list[list[int]] = [[] for _ in range(batch)]
    for frame in range(encoded_BSJ.shape[1]):
        open_B = frame < lengths_B
        for _ in range(max_units_per_frame):
            units_B = join(encoded_BSJ[:, frame], predicted_BJ).argmax(-1)
            open_B = open_B & (units_B != BLANK)
            if not open_B.any():
                break
            for row in open_B.nonzero().flatten().tolist():
                hypotheses[row].append(int(units_B[row]))
            shifted_BC = torch.cat([history_BC[:, 1:], units_B.unsqueeze(1)], dim=1)
            history_BC = torch.where(open_B.unsqueeze(1), shifted_BC, history_BC)
            predicted_BJ = predict(history_BC)
    return hypotheses


def greedy_ctc(logits_BSV: Tensor, lengths_B: Tensor) -> list[list[int]]:
    """One list of units for each utterance: repetitions are one unit, blanks none.

    Args:
        logits_BSV: of a CTC model, unit 0 being blank.
        lengths_B: int64 frames that count.
    """
    hypotheses = []
    for units_S, length in zip(logits_BSV.argmax(-1).cpu(), lengths_B.tolist(), strict=True):
        runs = units_S[:length].unique_consecutive().tolist()
        hypotheses.append([unit for unit in runs if unit != BLANK])
    return hypotheses
