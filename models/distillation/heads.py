"""What turns the output of a student's layer into a loss: heads that predict codes, or embeddings.

Shape suffixes: B utterances, S the student's frames, C the layer's channels, K codes of a frame, D embedding dimension.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvqkd.models.joint_loss import JointCodebookLoss

Distance = Literal["l1", "l2", "cosine"]
_DISTANCES = ("l1", "l2", "cosine")


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """What one frame of the student is to predict.

    Attributes:
        kind: "codes", or "embeddings".
        num_codebooks: codes of a frame (16 for 8 codebooks at 50 Hz and a student at 25 Hz).
        codebook_size: of codes: entries of a codebook.
        dim: of embeddings: their dimension.

    Raises:
        ValueError: sizes that are missing, or belong to the other kind.
    """

    kind: Literal["codes", "embeddings"]
    num_codebooks: int | None = None
    codebook_size: int | None = None
    dim: int | None = None

    def __post_init__(self) -> None:
        sizes = {"codes": ("num_codebooks", "codebook_size"), "embeddings": ("dim",)}
        if self.kind not in sizes:
            raise ValueError(f'kind={self.kind!r}; targets are "codes" or "embeddings"')
        for name in ("num_codebooks", "codebook_size", "dim"):
            value, wanted = getattr(self, name), name in sizes[self.kind]
            if wanted and (value is None or value < 1):
                raise ValueError(f"{name}={value} must be at least 1 for targets that are {self.kind}")
            if not wanted and value is not None:
                raise ValueError(f"{name}={value} is not for targets that are {self.kind}")


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """The loss of a head, summed over the `count` things that count: codes, numbers of embeddings, or frames."""

    loss: Tensor
    count: int


class CodesHead(nn.Module):
    """Predicts codes: their cross-entropy in nats; see `JointCodebookLoss`.

    Args:
        channels: of the student's layer.
        num_codebooks: codes of one frame of the student.
        codebook_size: entries of a codebook.
        joint: each code from those before it too; else each by itself.
        label_smoothing: share of the target that is spread over all entries of a codebook.
    """

    def __init__(
        self,
        channels: int,
        num_codebooks: int,
        codebook_size: int,
        *,
        joint: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.codebooks = JointCodebookLoss(
            predictor_channels=channels,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
            is_joint=joint,
            label_smoothing=label_smoothing,
            # One layer's output is kept with 256 numbers for each code, which is little beside the student's own.
            checkpoint=joint,
        )

    def forward(self, tapped_BSC: Tensor, targets_BSK: Tensor) -> HeadLoss:
        """Codes (int64), -100 where there is none; `count` is of codes.

        Raises:
            ValueError: the shapes do not fit together.
        """
        loss = self.codebooks(tapped_BSC, targets_BSK)
        return HeadLoss(loss=loss, count=int((targets_BSK >= 0).sum()))


class EmbeddingHead(nn.Module):
    """Predicts embeddings by one linear layer.

    Args:
        channels: of the student's layer.
        dim: of the embeddings.
        distance: "l1" and "l2" sum absolute or squared differences over channels and frames; "cosine" sums
            1 - cosine over frames.

    Raises:
        ValueError: a size or distance that is none.
    """

    def __init__(self, channels: int, dim: int, distance: Distance = "l2") -> None:
        super().__init__()
        if min(channels, dim) < 1:
            raise ValueError(f"channels={channels} and dim={dim} must be at least 1")
        if distance not in _DISTANCES:
            raise ValueError(f"distance={distance!r}; use one of {', '.join(_DISTANCES)}")
        self.dim, self.distance = dim, distance
        self.project = nn.Linear(channels, dim)

    def forward(self, tapped_BSC: Tensor, targets_BSD: Tensor) -> HeadLoss:
        """Embeddings (float), rows of NaN where there is none; `count` is of numbers (l1, l2) or frames (cosine).

        Raises:
            ValueError: the shapes do not fit together, or a row is NaN in part.
        """
        if tapped_BSC.shape[:-1] != targets_BSD.shape[:-1] or targets_BSD.shape[-1] != self.dim:
            raise ValueError(
                f"the layer's output {tuple(tapped_BSC.shape)} and embeddings {tuple(targets_BSD.shape)} do not fit: "
                f"leading dimensions must agree and the embeddings end in {self.dim} channels"
            )
        missing_BSD = targets_BSD.isnan()
        missing_BS = missing_BSD.all(dim=-1)
        if bool((missing_BSD.any(dim=-1) & ~missing_BS).any()):
            raise ValueError("embeddings hold NaN in some of their channels; leave that utterance out")
        # All frames go through the layer, so that its parameters have gradients (of 0) where there is no target.
        predicted_BSD = self.project(tapped_BSC).float()
        targets_BSD = targets_BSD.float().masked_fill(missing_BS.unsqueeze(-1), 0.0)
        if self.distance == "l1":
            each_BS = (predicted_BSD - targets_BSD).abs().sum(dim=-1)
        elif self.distance == "l2":
            each_BS = (predicted_BSD - targets_BSD).square().sum(dim=-1)
        else:
            each_BS = 1.0 - F.cosine_similarity(predicted_BSD, targets_BSD, dim=-1)
        frames = int((~missing_BS).sum())
        return HeadLoss(
            loss=torch.where(missing_BS, 0.0, each_BS).sum(),
            count=frames if self.distance == "cosine" else frames * self.dim,
        )


def build_head(
    spec: TargetSpec,
    channels: int,
    *,
    joint: bool = False,
    label_smoothing: float = 0.0,
    distance: Distance = "l2",
) -> CodesHead | EmbeddingHead:
    """The head for targets of this kind on a layer with so many channels; `joint` and `label_smoothing` are of codes,
    `distance` of embeddings."""
    if spec.kind == "codes":
        assert spec.num_codebooks is not None
        assert spec.codebook_size is not None
        return CodesHead(
            channels, spec.num_codebooks, spec.codebook_size, joint=joint, label_smoothing=label_smoothing
        )
    assert spec.dim is not None
    return EmbeddingHead(channels, spec.dim, distance)
