"""What a system gets to fit with, and what it hands back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ENCODE_FRAMES = 4096


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What every system is fitted with.

    Attributes:
        num_bytes: codes of 256 entries per frame.
        budget_s: wall time for systems that can use any amount of it.
        seed: fixes what is random, where the system lets us.
        threads: of a system that does not take torch's number.
        device: where torch systems fit and encode.
        peer_encode_frames: frames by which the encoding speed of slow systems is measured.
    """

    num_bytes: int
    budget_s: float
    seed: int
    threads: int
    device: torch.device
    peer_encode_frames: int = 512


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted system.

    Attributes:
        encode: frames (B, D) to codes (B, num_bytes) in 0..255.
        decode: codes to frames.
        fit_s: wall time of fitting.
        history: (seconds, RRL of held-out train frames) while it was fitted, where that is known.
        details: what else should stand in the report.
        encode_frames: how many frames its encoding speed is measured on.
        slow: whether its RRL may be measured on fewer test frames.
        decode_first: the first columns of codes to frames, for systems whose codes are an order.
        encode_fast: a quicker and less exact way of encoding to the same codebooks, where there is one.
    """

    encode: Callable[..., Tensor]
    decode: Callable[[Tensor], Tensor]
    fit_s: float
    history: list[tuple[float, float]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    encode_frames: int = ENCODE_FRAMES
    slow: bool = False
    encode_fast: Callable[[Tensor], Tensor] | None = None
    decode_first: Callable[[Tensor], Tensor] | None = None
