"""Bias, layer norm and GELU as one kernel for CUDA, written in Triton.

In tensor operations a frame in bfloat16 goes through memory several times, most of them in float32; here it is read
once and written once.

Shape suffixes: F frames, C channels.
"""

import torch
import triton
from torch import Tensor, nn
from triton import language as tl

_NUMBERS_PER_PROGRAM = 2048
WARPS = 4


@triton.jit
def _norm_rows(
    x_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    out_ptr: tl.tensor,
    frames: int,
    eps: float,
    BIAS: tl.constexpr,
    AFFINE: tl.constexpr,
    GELU: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """ROWS frames; COLUMNS is the power of two from C."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_channel = column < C
    exists = (row < frames)[:, None] & is_channel[None, :]
    at = row[:, None] * C + column[None, :]
    x = tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(x, axis=1) / C
    y = tl.where(exists, x - mean[:, None], 0.0)
    variance = tl.sum(y * y, axis=1) / C
    y *= (1.0 / tl.sqrt(variance + eps))[:, None]
    if AFFINE:
        y *= tl.load(weight_ptr + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        y += tl.load(shift_ptr + column, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=exists)


def norm_rows(
    x_FC: Tensor, norm: nn.LayerNorm, *, bias_C: Tensor | None, gelu: bool, dtype: torch.dtype
) -> Tensor:
    """As `norms.NormRows`."""
    frames, channels = x_FC.shape
    assert x_FC.is_contiguous() and norm.normalized_shape == (channels,)
    out_FC = torch.empty(frames, channels, dtype=dtype, device=x_FC.device)
    if not frames:
        return out_FC
    affine = norm.weight is not None
    given = constants(channels, bias=bias_C is not None, affine=affine, gelu=gelu)
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device_of(x_FC):
        _norm_rows[(triton.cdiv(frames, given["ROWS"]),)](
            x_FC,
            x_FC if bias_C is None else bias_C,
            norm.weight if affine else x_FC,
            norm.bias if affine else x_FC,
            out_FC,
            frames,
            norm.eps,
            **given,
            num_warps=WARPS,
        )
    return out_FC


def constants(channels: int, *, bias: bool, affine: bool, gelu: bool) -> dict[str, int]:
    """What the kernel is compiled for."""
    columns = triton.next_power_of_2(channels)
    rows = max(1, _NUMBERS_PER_PROGRAM // columns)
    flags = {"BIAS": bias, "AFFINE": affine, "GELU": gelu}
    return {**flags, "C": channels, "ROWS": rows, "COLUMNS": columns}
