"""Heads: their losses from first principles, what does not count, and gradients in a batch without targets."""

import math

import pytest
import torch
from torch import Tensor

from mvqkd.models.alignment import IGNORE
from mvqkd.models.distillation.heads import CodesHead, EmbeddingHead, TargetSpec, build_head

NAN = float("nan")
CODES = TargetSpec(kind="codes", num_codebooks=4, codebook_size=16)
EMBEDDINGS = TargetSpec(kind="embeddings", dim=5)


def embeddings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets_BSD = torch.randn(2, 7, 5, generator=generator)
    targets_BSD[1, 4:] = NAN
    return torch.randn(2, 7, 12, generator=generator), targets_BSD


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_distances_written_down(distance: str) -> None:
    head = EmbeddingHead(12, 5, distance)  # type: ignore[arg-type]
    tapped_BSC, targets_BSD = embeddings()
    result = head(tapped_BSC, targets_BSD)
    expected = torch.zeros(())
    for b, s in [(b, s) for b in range(2) for s in range(7) if not (b == 1 and s >= 4)]:
        predicted, target = head.project(tapped_BSC[b, s]), targets_BSD[b, s]
        if distance == "l1":
            expected = expected + (predicted - target).abs().sum()
        elif distance == "l2":
            expected = expected + (predicted - target).pow(2).sum()
        else:
            expected = expected + 1 - predicted @ target / (predicted.norm() * target.norm())
    torch.testing.assert_close(result.loss, expected)
    assert result.count == (11 if distance == "cosine" else 11 * 5)


@pytest.mark.parametrize(
    "head",
    [
        CodesHead(12, 4, 16),
        CodesHead(12, 4, 16, joint=True),
        CodesHead(12, 1, 16, joint=True),
        *(EmbeddingHead(12, 5, distance) for distance in ("l1", "l2", "cosine")),  # type: ignore[arg-type]
    ],
)
def test_gradients_of_zero_where_there_is_no_target(head: CodesHead | EmbeddingHead) -> None:
    tapped_BSC = torch.randn(2, 3, 12, requires_grad=True)
    codes = isinstance(head, CodesHead)
    size = head.codebooks.num_codebooks if codes else head.dim
    result = head(tapped_BSC, torch.full((2, 3, size), IGNORE if codes else NAN))
    assert result.count == 0 and float(result.loss.detach()) == 0
    result.loss.backward()
    for name, tensor in [*head.named_parameters(), ("tapped", tapped_BSC)]:
        assert tensor.grad is not None and not tensor.grad.abs().sum(), name


def test_silence_as_embedding_and_as_output() -> None:
    """Zero vectors have no direction; their cosine counts as 0, and gradients stay finite."""
    head = EmbeddingHead(12, 5, "cosine")
    with torch.no_grad():
        head.project.bias.zero_()
    tapped_BSC = torch.zeros(1, 2, 12, requires_grad=True)
    result = head(tapped_BSC, torch.zeros(1, 2, 5))
    result.loss.backward()
    assert float(result.loss.detach()) == 2
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_under_autocast_distances_are_float32() -> None:
    tapped_BSC, targets_BSD = embeddings()
    for head, targets in (
        (EmbeddingHead(12, 5, "l2"), targets_BSD),
        (CodesHead(12, 4, 16, joint=True), torch.randint(16, (2, 7, 4))),
    ):
        exact = head(tapped_BSC, targets).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = head(tapped_BSC, targets).loss
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.1)


def test_embeddings_that_do_not_fit() -> None:
    head = EmbeddingHead(12, 5)
    tapped_BSC, targets_BSD = embeddings()
    with pytest.raises(ValueError, match=r"do not fit: leading dimensions must agree .* end in 5 channels"):
        head(tapped_BSC, targets_BSD[..., :4])
    with pytest.raises(ValueError, match="do not fit"):
        head(tapped_BSC[:, 1:], targets_BSD)
    targets_BSD[0, 0, 2] = NAN
    with pytest.raises(ValueError, match="NaN in some of their channels"):
        head(tapped_BSC, targets_BSD)


def test_heads_of_targets() -> None:
    codes = build_head(CODES, 12, joint=True)
    assert isinstance(codes, CodesHead) and codes.codebooks.is_joint
    assert isinstance(build_head(CODES, 12), CodesHead)
    embedding = build_head(EMBEDDINGS, 12, distance="cosine")
    assert isinstance(embedding, EmbeddingHead) and (embedding.dim, embedding.distance) == (5, "cosine")
    with pytest.raises(ValueError, match="distance='l3'; use one of l1, l2, cosine"):
        build_head(EMBEDDINGS, 12, distance="l3")  # type: ignore[arg-type]
    torch.manual_seed(0)
    head = build_head(CODES, 12)
    result = head(torch.randn(50, 20, 12), torch.randint(16, (50, 20, 4)))
    assert float(result.loss.detach()) / result.count == pytest.approx(math.log(16), abs=0.8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "words"}, "kind='words'"),
        ({"kind": "codes", "num_codebooks": 4}, "codebook_size=None must be at least 1"),
        ({"kind": "codes", "num_codebooks": 0, "codebook_size": 4}, "num_codebooks=0"),
        ({"kind": "embeddings", "dim": 4, "codebook_size": 4}, "codebook_size=4 is not for targets"),
        ({"kind": "embeddings"}, "dim=None must be at least 1"),
    ],
)
def test_targets_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetSpec(**settings)
