"""Probes: how well can a student's last layer predict the codes from what they stand for?

The student of MVQ-KD is trained to predict codes, so of two quantizers with equal reconstruction the one whose
codes are easier to predict teaches more.

Shape suffixes: M frames in all, B frames of a batch, D embedding dimension, N codebooks.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN_CHANNELS = 512
_BATCH_SIZE = 1024
_LINEAR_RATE, _HIDDEN_RATE = 0.003, 0.001
"""Of a few tried for 300 steps, those that were best for codes of `multi_quantization` on Whisper test frames: where
they favour a system, it is that one."""
_CODEBOOK_SIZE = 256


def probe_nats(
    train_MD: Tensor,
    train_codes_MN: Tensor,
    test_MD: Tensor,
    test_codes_MN: Tensor,
    *,
    hidden: bool,
    steps: int,
    seed: int,
) -> float:
    """Cross-entropy in nats per code on the test frames, after training on the train frames; ln 256 is chance.

    Args:
        train_MD: frames, on the device to train on; each channel is standardized by these.
        train_codes_MN: their codes in 0..255; all codebooks are predicted at once, each by itself.
        hidden: put one layer of 512 ReLU units before the linear one.
        steps: batches of 1,024; the learning rate falls to zero along a half cosine.
        seed: fixes weights and batches.
    """
    mean_D, scale_D = train_MD.mean(dim=0), train_MD.std(dim=0) + 1e-5
    train_MD, test_MD = (train_MD - mean_D) / scale_D, (test_MD - mean_D) / scale_D
    num_codebooks = train_codes_MN.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(train_MD.shape[1], num_codebooks * _CODEBOOK_SIZE, hidden).to(train_MD.device)
    generator = torch.Generator().manual_seed(seed)
    rate = _HIDDEN_RATE if hidden else _LINEAR_RATE
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    codes_MN = train_codes_MN.long().to(train_MD.device)
    for _ in range(steps):
        rows_B = torch.randint(len(train_MD), (_BATCH_SIZE,), generator=generator).to(train_MD.device)
        loss = _nats(model, train_MD[rows_B], codes_MN[rows_B]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        blocks = zip(
            test_MD.split(_BATCH_SIZE),
            test_codes_MN.long().to(test_MD.device).split(_BATCH_SIZE),
            strict=True,
        )
        total = sum(float(_nats(model, x_BD, codes_BN).double().sum()) for x_BD, codes_BN in blocks)
    return total / test_codes_MN.numel()


def _model(dim: int, outputs: int, hidden: bool) -> nn.Module:
    if not hidden:
        return nn.Linear(dim, outputs)
    return nn.Sequential(nn.Linear(dim, HIDDEN_CHANNELS), nn.ReLU(), nn.Linear(HIDDEN_CHANNELS, outputs))


def _nats(model: nn.Module, x_BD: Tensor, codes_BN: Tensor) -> Tensor:
    """Of each code: (B * N,)."""
    logits = model(x_BD).view(-1, _CODEBOOK_SIZE)
    return F.cross_entropy(logits, codes_BN.reshape(-1), reduction="none")
