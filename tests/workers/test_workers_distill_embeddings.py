"""Stored embeddings as targets, from the extraction to the loss of a head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from workers_fakes import (
    DIM,
    make_contract,
    make_contract_of_embeddings,
    make_cuts,
    make_embedder,
    make_plan,
)

from mvqkd.models.alignment import AlignmentError, FrameAlignment
from mvqkd.models.distillation.heads import build_head
from mvqkd.storage.errors import ContractError
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.embedding_targets import TableEmbeddings
from mvqkd.workers.distill.target_sources import TargetSource
from mvqkd.workers.extract import Extractor

ALIGNMENT = FrameAlignment(
    teacher_rate_hz=50.0, student_rate_hz=25.0, teacher_offset_s=0.0125, student_offset_s=0.03
)


def test_targets_of_a_row() -> None:
    contract = make_contract_of_embeddings()
    source: TargetSource = TableEmbeddings(contract, ALIGNMENT)
    assert (source.spec.kind, source.spec.dim, source.columns) == ("embeddings", 2 * DIM, ("embeddings",))
    x_TD = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float16)
    targets = source.targets({"cut_id": "a", "embeddings": x_TD}, 3)
    expected = torch.from_numpy(x_TD.astype(np.float32))
    assert targets.dtype == torch.float32
    assert torch.equal(targets[:2], expected[:4].reshape(2, -1)) and bool(targets[2].isnan().all())
    mean = TableEmbeddings(contract, ALIGNMENT, span="mean")
    assert mean.spec.dim == DIM
    means = mean.targets({"cut_id": "a", "embeddings": x_TD}, 2)
    torch.testing.assert_close(means, expected[:4].reshape(2, 2, -1).mean(dim=1))


def test_what_does_not_belong_together() -> None:
    with pytest.raises(
        ContractError, match=r"s3://b/t: this table holds codes, and embeddings are asked for"
    ):
        TableEmbeddings(make_contract(), ALIGNMENT, where="s3://b/t")
    source = TableEmbeddings(make_contract_of_embeddings(), ALIGNMENT)
    row = {"cut_id": "a", "embeddings": np.zeros((5, DIM), dtype=np.float16)}
    with pytest.raises(AlignmentError, match="5 teacher frames leave 18 of 20 student frames"):
        source.targets(row, 20)
    row["embeddings"] = np.zeros((5, DIM + 1), dtype=np.float16)
    with pytest.raises(ValueError, match=rf"shape \(5, {DIM + 1}\), but the contract says \(5, {DIM}\)"):
        source.targets(row, 2)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_a_head_learns_what_a_table_holds(tmp_path: Path, distance: str) -> None:
    """Of a table that was extracted: a linear layer finds embeddings that are a linear map of its input."""
    plan, (shard,) = make_plan(tmp_path / "plan", make_cuts(tmp_path, [0.4, 0.7, 0.5]), per_shard=3)
    table = IndexTable.create(open_location(str(tmp_path / "table")), make_contract_of_embeddings())
    Extractor(embedder=make_embedder(), tables=[(table, None)], plan=plan).run(shard)
    source = TableEmbeddings(table.contract, ALIGNMENT)
    targets = torch.cat(
        [
            source.targets(row, row["num_frames"] // 2 + 1)
            for row in table.iter_rows(columns=["cut_id", "num_frames", "embeddings"])
        ]
    )
    missing = targets.isnan().all(dim=1)
    assert 0 < int(missing.sum()) <= 3
    torch.manual_seed(0)
    head = build_head(source.spec, 2 * DIM, distance=distance)  # type: ignore[arg-type]
    tapped = torch.where(missing.unsqueeze(1), 0.0, targets)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        result = head(tapped, targets)
        optimizer.zero_grad()
        (result.loss / result.count).backward()
        optimizer.step()
        losses.append(float(result.loss.detach()) / result.count)
    assert result.count == int((~missing).sum()) * (1 if distance == "cosine" else 2 * DIM)
    assert losses[-1] < 0.2 * losses[0]
