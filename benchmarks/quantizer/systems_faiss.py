"""Four quantizers of FAISS, each with FAISS's own settings unless said. They run on the CPU.

Shape suffixes: M frames in all, B frames of a call, D embedding dimension, N codebooks.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quantizer.fitting import FitOptions, Fitted
from benchmarks.quantizer.frames import evenly
from benchmarks.quantizer.gauges import seconds

if TYPE_CHECKING:
    import faiss

_BITS = 8
_RQ_BEAMS = 16
_LSQ_TIMED_FRAMES = (1024, 4096)
_LSQ_FEWEST_ITERATIONS = 5
_CPU = torch.device("cpu")


def product_refuses(dim: int, num_bytes: int) -> str | None:
    """A product quantizer cuts a frame into equal parts."""
    if dim % num_bytes == 0:
        return None
    return f"{dim} channels cannot be cut into {num_bytes} equal parts"


def fit_pq(train_MD: Tensor, options: FitOptions) -> Fitted:
    """Product quantization."""
    faiss, x_MD = _start(train_MD, options)
    pq = faiss.ProductQuantizer(x_MD.shape[1], options.num_bytes, _BITS)
    return _fitted(pq, fit_s=seconds(lambda: pq.train(x_MD), _CPU))


def fit_opq(train_MD: Tensor, options: FitOptions) -> Fitted:
    """Product quantization after the rotation that suits it best."""
    faiss, x_MD = _start(train_MD, options)
    rotation = faiss.OPQMatrix(x_MD.shape[1], options.num_bytes)
    pq = faiss.ProductQuantizer(x_MD.shape[1], options.num_bytes, _BITS)

    def train() -> None:
        rotation.train(x_MD)
        pq.train(rotation.apply(x_MD))

    return _fitted(pq, fit_s=seconds(train, _CPU), rotation=rotation)


def fit_rq(train_MD: Tensor, options: FitOptions) -> Fitted:
    """Residual quantization with a beam of 16 in training and encoding.

    Its fast encoding takes the inner products of the codebooks from tables.
    """
    faiss, x_MD = _start(train_MD, options)
    rq = faiss.ResidualQuantizer(x_MD.shape[1], options.num_bytes, _BITS)
    rq.max_beam_size = _RQ_BEAMS
    fitted = _fitted(rq, fit_s=seconds(lambda: rq.train(x_MD), _CPU), details={"beams": _RQ_BEAMS})

    def encode(x_BD: Tensor, tables: int) -> Tensor:
        rq.use_beam_LUT = tables
        return fitted.encode(x_BD)

    return replace(fitted, encode=lambda x_BD: encode(x_BD, 0), encode_fast=lambda x_BD: encode(x_BD, 1))


def fit_lsq(train_MD: Tensor, options: FitOptions) -> Fitted:
    """Local search quantization: additive like ours.

    FAISS's 25 iterations on all frames can take hours, so it gets the same budget as the other iterative
    systems: fewer iterations where 25 take longer, and where 5 still do, fewer frames.
    """
    faiss, x_MD = _start(train_MD, options)

    def new(iterations: int | None) -> "faiss.LocalSearchQuantizer":
        lsq = faiss.LocalSearchQuantizer(x_MD.shape[1], options.num_bytes, _BITS)
        lsq.random_seed = options.seed
        lsq.train_iters = lsq.train_iters if iterations is None else iterations
        return lsq

    few_s, more_s = (seconds(lambda n=n: new(1).train(_drawn(x_MD, n)), _CPU) for n in _LSQ_TIMED_FRAMES)
    # The centers' least squares cost the same for any number of frames, the search for codes does not.
    frame_s = max(more_s - few_s, 0.1 * more_s) / (_LSQ_TIMED_FRAMES[1] - _LSQ_TIMED_FRAMES[0])
    fixed_s = max(0.0, few_s - frame_s * _LSQ_TIMED_FRAMES[0])
    lsq = new(None)
    affordable = int(options.budget_s / (fixed_s + frame_s * len(x_MD)))
    lsq.train_iters = min(lsq.train_iters, max(affordable, _LSQ_FEWEST_ITERATIONS))
    frames = int((options.budget_s / lsq.train_iters - fixed_s) / frame_s)
    x_MD = _drawn(x_MD, max(frames, _LSQ_TIMED_FRAMES[1]))
    fit_s = seconds(lambda: lsq.train(x_MD), _CPU)
    details: dict[str, Any] = {"calibration_s": few_s + more_s}
    full = (new(None).train_iters, len(train_MD))
    if (lsq.train_iters, len(x_MD)) != full:
        details["note"] = (
            f"{lsq.train_iters} of {full[0]} iterations, {len(x_MD)} of {full[1]} frames, for the budget"
        )
    return _fitted(lsq, fit_s=fit_s, details=details)


def _start(train_MD: Tensor, options: FitOptions) -> tuple[Any, np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(options.threads)
    return faiss, train_MD.numpy()


def _drawn(x_MD: np.ndarray, count: int) -> np.ndarray:
    return x_MD if count >= len(x_MD) else np.ascontiguousarray(x_MD[evenly(count, len(x_MD)).numpy()])


def _fitted(
    quantizer: Any,
    *,
    fit_s: float,
    rotation: Any = None,
    details: dict[str, Any] | None = None,
) -> Fitted:
    def encode(x_BD: Tensor) -> Tensor:
        x = x_BD.numpy()
        codes = quantizer.compute_codes(x if rotation is None else rotation.apply(x))
        return torch.from_numpy(codes)  # 8 bits each, so a byte holds one code

    def decode(codes_BN: Tensor) -> Tensor:
        x_hat = quantizer.decode(codes_BN.numpy())
        x_hat = x_hat if rotation is None else rotation.reverse_transform(x_hat)
        return torch.from_numpy(x_hat)

    return Fitted(encode=encode, decode=decode, fit_s=fit_s, details=details or {})
