"""The codebook loss: how well a student's layer predicts the codes of the teacher's embeddings.

Same signature, state-dict names and values as `multi_quantization` 0.1.1 (arXiv 2211.00508, section 4).

Shape suffixes: T frames (all leading dimensions flattened), C predictor channels, H hidden channels,
N codebooks, K entries per codebook, M entries of all codebooks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute_in_backward


class JointCodebookLoss(nn.Module):
    """Cross-entropy of N codes per frame, each predicted from the student's output and the codes before it.

    Code n is predicted from a linear function of the student's output, plus (joint mode) a hidden layer over
    the student's output and the embeddings of codes 0..n-1. In independent mode it is the linear function
    alone.

    Args:
        predictor_channels: channels of the student's layer.
        num_codebooks: codes per frame, from 1 (16 for 8 codebooks at 50 Hz and a student at 25 Hz).
        hidden_channels: width of the hidden layer (joint mode).
        codebook_size: entries per codebook.
        reduction: "sum", "mean" (over codes that count) or "none" (one value per code, flattened, as in
            the reference).
        ignore_index: codes of this value do not count, and codes after them are predicted without them. (In the
            reference those are predicted as if code 0 stood there; it wants a frame's codes all ignored or none.)
        is_joint: False for the independent mode.
        checkpoint: keep less for the backward pass and compute the forward pass twice.
        label_smoothing: share of the target that is spread over all entries of a codebook.

    Every parameter gets a gradient, since one without breaks DistributedDataParallel. In independent mode
    the reference creates linear1, codebook_embedding and linear2_weight and never uses them; here they do
    not exist, and are dropped from a reference state dict that is loaded.

    Raises:
        ValueError: a size or the reduction is impossible.
    """

    def __init__(
        self,
        predictor_channels: int,
        num_codebooks: int,
        hidden_channels: int = 512,
        codebook_size: int = 256,
        reduction: str = "sum",
        ignore_index: int = -100,
        is_joint: bool = True,
        checkpoint: bool = True,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if min(predictor_channels, num_codebooks, hidden_channels) < 1 or codebook_size < 2:
            raise ValueError(
                f"impossible sizes: predictor_channels={predictor_channels}, num_codebooks={num_codebooks}, "
                f"hidden_channels={hidden_channels}, codebook_size={codebook_size}"
            )
        if reduction not in ("sum", "mean", "none"):
            raise ValueError(f'reduction={reduction!r}; use "sum", "mean" or "none"')
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        if 0 <= ignore_index < codebook_size:
            raise ValueError(f"ignore_index={ignore_index} is a valid code; use a negative number")
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.hidden_channels = hidden_channels
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.is_joint = is_joint
        self.checkpoint = checkpoint
        self.label_smoothing = label_smoothing
        if is_joint:
            self.linear1 = nn.Linear(predictor_channels, hidden_channels)
            if num_codebooks > 1:
                self.codebook_embedding = nn.Embedding((num_codebooks - 1) * codebook_size, hidden_channels)
                nn.init.normal_(self.codebook_embedding.weight, std=hidden_channels**-0.5)
            self.linear2_weight = nn.Parameter(
                torch.randn(num_codebooks, codebook_size, hidden_channels) * hidden_channels**-0.5
            )
        self.linear2b_weight = nn.Parameter(
            torch.randn(num_codebooks, codebook_size, predictor_channels) * predictor_channels**-0.5
        )
        self.linear2_bias = nn.Parameter(torch.zeros(num_codebooks, codebook_size))
        self.register_load_state_dict_pre_hook(_drop_unused)

    def forward(self, predictor: Tensor, codebook_indexes: Tensor) -> Tensor:
        """The loss of one batch.

        Args:
            predictor: the student's output, (*, C).
            codebook_indexes: the codes, integers (*, N) with the same leading dimensions; `ignore_index`
                where there is none.

        Returns: a scalar, or (T * N,) with reduction "none".

        Raises:
            ValueError: the shapes do not fit together.
        """
        if (
            predictor.shape[:-1] != codebook_indexes.shape[:-1]
            or codebook_indexes.shape[-1] != self.num_codebooks
        ):
            raise ValueError(
                f"predictor {tuple(predictor.shape)} and codes {tuple(codebook_indexes.shape)} do not fit: "
                f"leading dimensions must agree and the codes end in {self.num_codebooks} codebooks"
            )
        predictor_TC = predictor.reshape(-1, predictor.shape[-1])
        codes_TN = codebook_indexes.reshape(-1, self.num_codebooks).long()
        if self.checkpoint and torch.is_grad_enabled():
            return recompute_in_backward(
                self._loss, predictor_TC, codes_TN, use_reentrant=False, preserve_rng_state=False
            )
        return self._loss(predictor_TC, codes_TN)

    def _loss(self, predictor_TC: Tensor, codes_TN: Tensor) -> Tensor:
        # One product for all codebooks, in the order in which cross-entropy reads it.
        logits_TM = F.linear(predictor_TC, self.linear2b_weight.flatten(0, 1), self.linear2_bias.flatten())
        logits_TNK = logits_TM.unflatten(1, (self.num_codebooks, self.codebook_size))
        if self.is_joint:
            hidden_NTH = self._hidden(predictor_TC, codes_TN)
            logits_TNK = logits_TNK + torch.matmul(hidden_NTH, self.linear2_weight.transpose(1, 2)).transpose(
                0, 1
            )
        return F.cross_entropy(
            logits_TNK.reshape(-1, self.codebook_size),
            codes_TN.reshape(-1),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def _hidden(self, predictor_TC: Tensor, codes_TN: Tensor) -> Tensor:
        """The hidden layer for each codebook: it sees the student's output and all codes before."""
        sums_NTH = self.linear1(predictor_TC).unsqueeze(0)
        if self.num_codebooks > 1:
            first = torch.arange(self.num_codebooks - 1, device=codes_TN.device) * self.codebook_size
            rows_TN = codes_TN[:, :-1].clamp(min=0) + first
            scale = 0.5 * (self.hidden_channels / self.num_codebooks) ** 0.5
            before_NTH = self.codebook_embedding(rows_TN.t()) * scale
            # A code that is not known says nothing to those after it: at its ends an utterance may have the codes of
            # one of two teacher frames alone.
            before_NTH = before_NTH * (codes_TN[:, :-1] >= 0).t().unsqueeze(2)
            sums_NTH = torch.cat((sums_NTH, before_NTH)).cumsum(dim=0)
        return sums_NTH.relu()


def _drop_unused(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a state dict of the reference load where it has parameters that its forward pass never reads."""
    own = {prefix + name for name, _parameter in module.named_parameters()}
    for name in ("linear1.weight", "linear1.bias", "codebook_embedding.weight", "linear2_weight"):
        if prefix + name not in own:
            state_dict.pop(prefix + name, None)
