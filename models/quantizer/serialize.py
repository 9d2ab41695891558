"""A quantizer as plain arrays, for whoever stores it, and the checkpoints of `multi_quantization`."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvqkd.models.quantizer.quantizer import Quantizer

_NAMES = ("to_logits.weight", "to_logits.bias", "centers", "logits_scale", "centers_scale", "id_buf")


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
    known = metadata or {}
    return _from_state(
        state,
        "the arrays",
        logprob_weight=known.get("logprob_weight", 0.0),
        prefix_weights=known.get("prefix_weights"),
    )


def load_reference_checkpoint(path: str | Path) -> Quantizer:
    """Load a state dict that `multi_quantization` 0.1.1 saved with torch.save, on the CPU and in eval mode.

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
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict; save it with torch.save(quantizer.state_dict(), path)")
    return _from_state(state, str(path))


def _from_state(state: Mapping[str, Tensor], source: str, **encoding: Any) -> Quantizer:
    missing, unknown = sorted(set(_NAMES) - set(state)), sorted(set(state) - set(_NAMES))
    if missing or unknown:
        raise ValueError(f"{source} is no quantizer: missing {missing}, unknown {unknown}")
    if state["centers"].ndim != 3:
        raise ValueError(f"{source}: centers has shape {tuple(state['centers'].shape)}, not (N, K, D)")
    num_codebooks, codebook_size, dim = state["centers"].shape
    with torch.random.fork_rng(devices=[]):
        quantizer = Quantizer(dim, codebook_size, num_codebooks, **encoding)
    try:
        quantizer.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit together: {error}") from error
    return quantizer.eval()
