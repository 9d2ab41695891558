"""A quantizer as plain arrays, for whoever stores it, and the checkpoints of `multi_quantization` and SPEAR.

Shape suffixes: D embedding dimension.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvqkd.models.quantizer.derive import folded_channels, folded_scale
from mvqkd.models.quantizer.quantizer import Quantizer

_NAMES = ("to_logits.weight", "to_logits.bias", "centers", "logits_scale", "centers_scale", "id_buf")
_ENCODING = ("logprob_weight", "prefix_weights", "channel_weights")
_SPEAR = {"quantizer", "mean", "std"}


def quantizer_to_arrays(quantizer: Quantizer) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state dict as arrays (float32, id_buf uint8), and id, sizes and the way of encoding as metadata."""
    arrays = {
        name: t.detach().cpu().contiguous().numpy().copy() for name, t in quantizer.state_dict().items()
    }
    metadata: dict[str, Any] = {
        "id": quantizer.get_id(),
        "dim": quantizer.dim,
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
        "logprob_weight": quantizer.logprob_weight,
        "prefix_weights": quantizer.prefix_weights and list(quantizer.prefix_weights),
    }
    if quantizer.channel_weights is not None:  # few have them, and files of before have no such key
        metadata["channel_weights"] = list(quantizer.channel_weights)
    return arrays, metadata


def quantizer_from_arrays(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None
) -> Quantizer:
    """The quantizer, on the CPU and in eval mode, whose arrays these are; the sizes follow from their shapes.

    Args:
        metadata: what `quantizer_to_arrays` gave with the arrays; without it, or where it says nothing of the way of
            encoding, codes are searched for the least error, as the reference does.

    Raises:
        ValueError: a name is missing or unknown, or a shape does not fit.
    """
    state = {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    return _of_state(state, "the arrays", **{k: metadata[k] for k in _ENCODING if metadata and k in metadata})


def load_reference_checkpoint(path: str | Path) -> Quantizer:
    """Load a checkpoint of `multi_quantization` 0.1.1 that torch.save wrote, on the CPU and in eval mode.

    The file holds its state dict; or, as SPEAR writes it, the keys `quantizer` (the state dict), `mean` and `std`,
    for a quantizer of (x - mean) / std, both None where nothing was normalized. `mean` and `std` are one number or
    one for each channel. They are folded into the weights (`derive.py`), so that the result takes and gives frames x
    themselves. What is decoded and what the classifier says is that of the checkpoint, up to float32's rounding.
    Codes are those of the least error of (x - mean) / std too, and not of x, whose few largest channels would decide
    alone: where std differs between channels, the result has `channel_weights` of 1 / std^2.
    The id of a quantizer with a normalization follows from its folded weights.

    Raises:
        ValueError: the file cannot be read as tensors alone, or holds something else.
        FileNotFoundError: there is no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is no checkpoint of plain tensors ({type(error).__name__}: {error}); "
            "save it with torch.save(quantizer.state_dict(), path)"
        ) from error
    if isinstance(state, Mapping) and _SPEAR & set(state):
        return _of_spear(state, str(path))
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict; save it with torch.save(quantizer.state_dict(), path)")
    return _of_state(state, str(path))


def _of_spear(file: Mapping[str, Any], source: str) -> Quantizer:
    missing, unknown = sorted(_SPEAR - set(file)), sorted(set(file) - _SPEAR)
    if missing or unknown:
        raise ValueError(
            f"{source} is no quantizer with its normalization: missing {missing}, unknown {unknown}; "
            "it takes quantizer (a state dict), mean and std"
        )
    state = file["quantizer"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source}: quantizer holds no state dict but {type(state).__name__}")
    quantizer = _of_state(state, f"{source}: quantizer")
    if file["mean"] is None and file["std"] is None:
        return quantizer
    mean_D, std_D = (_channels(file[name], quantizer.dim, f"{source}: {name}") for name in ("mean", "std"))
    if not bool((std_D > 0).all()):
        channels = (std_D <= 0).nonzero().squeeze(1).tolist()[:10]
        raise ValueError(f"{source}: std is not above 0 in channels {channels}; nothing can be divided by it")
    weights = quantizer.parameter_tensors()
    if bool((std_D == std_D[0]).all()):
        folded = Quantizer.of_weights(folded_scale(weights, mean_D, float(std_D[0])))
    else:
        folded = Quantizer.of_weights(
            folded_channels(weights, mean_D, std_D), channel_weights=std_D.double().pow(-2).tolist()
        )
    folded.set_id_from_weights()
    return folded.eval()


def _channels(value: object, dim: int, source: str) -> Tensor:
    """One float32 number for each channel, of as many or of one."""
    if not isinstance(value, Tensor | int | float) or isinstance(value, bool):
        raise ValueError(
            f"{source} is {type(value).__name__}; it takes a tensor of {dim} numbers, or one number"
        )
    numbers = torch.as_tensor(value)
    if numbers.numel() not in (1, dim) or numbers.numel() != max((1, *numbers.shape)):
        raise ValueError(f"{source} has shape {tuple(numbers.shape)}; the quantizer has {dim} channels")
    channels_D = numbers.reshape(-1).float().expand(dim)
    if not bool(channels_D.isfinite().all()):
        bad = (~channels_D.isfinite()).nonzero().squeeze(1).tolist()[:10]
        raise ValueError(f"{source} holds NaN or infinity in channels {bad}; compute it anew, in float32")
    return channels_D


def _of_state(state: Mapping[str, Tensor], source: str, **encoding: Any) -> Quantizer:
    missing, unknown = sorted(set(_NAMES) - set(state)), sorted(set(state) - set(_NAMES))
    if missing or unknown:
        raise ValueError(f"{source} is no quantizer: missing {missing}, unknown {unknown}")
    if state["centers"].ndim != 3:
        raise ValueError(f"{source}: centers has shape {tuple(state['centers'].shape)}, not (N, K, D)")
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    try:
        return Quantizer.of_weights(state, **encoding).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{source} does not fit together: {error}") from error
