"""The embeddings of an index table as targets of a student.

Shape suffixes: S student frames, T teacher frames, D embedding dimension, K numbers of a target: D times the teacher
frames of a student frame, or D of their mean.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mvqkd.models.alignment import FrameAlignment, Span
from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.storage.contract import EMBEDDINGS, TableContract


class TableEmbeddings:
    """A `TargetSource` of stored embeddings, for the L1, L2 or cosine loss of an `EmbeddingHead`.

    Several teacher frames of one student frame are one target, as their codes are: the student is asked for the same
    numbers that `TableCodes` stands for, so that the two compare.

    Args:
        contract: of the table.
        alignment: teacher frames to student frames.
        span: "concat", or "mean": a target of fewer numbers, which says less of each frame.
        where: the table, for messages.

    Raises:
        ContractError: the table holds codes.
    """

    columns = (EMBEDDINGS,)

    def __init__(
        self,
        contract: TableContract,
        alignment: FrameAlignment,
        *,
        span: Span = "concat",
        where: str = "index table",
    ) -> None:
        contract.require_payload(EMBEDDINGS, where=where)
        self._alignment, self._span, self._dim = alignment, span, contract.dim
        times = alignment.frames_per_target if span == "concat" else 1
        self.spec = TargetSpec(kind="embeddings", dim=contract.dim * times)

    def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
        """float32 (S, K), rows of NaN where there is none.

        Raises:
            AlignmentError: too many are missing.
            ValueError: the row's embeddings are of another dimension.
        """
        x_TD = torch.tensor(row[EMBEDDINGS])
        if x_TD.ndim != 2 or x_TD.shape[1] != self._dim:
            raise ValueError(
                f"embeddings of shape {tuple(x_TD.shape)}, but the contract says ({len(x_TD)}, {self._dim}); extract "
                "the table again"
            )
        return self._alignment.embeddings(x_TD, num_frames, span=self._span)
