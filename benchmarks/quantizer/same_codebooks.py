"""Encoding alone: ours and `multi_quantization` on the codebooks of one checkpoint of the latter.

Shape suffixes: M all frames, B those drawn, D embedding dimension.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quantizer.frames import evenly
from benchmarks.quantizer.gauges import median_seconds
from benchmarks.quantizer.systems_torch import peer_encode
from mvqkd.models.quantizer import load_reference_checkpoint, rrl

IN_TENSORS = "ours in tensor operations"


@torch.no_grad()
def same_codebooks(test_MD: Tensor, checkpoint: Path, num_frames: int) -> dict[str, Any]:
    """Frames per second and RRL of both on the same frames, each with its default of 5 iterations.

    Args:
        test_MD: frames on the device to encode on; `num_frames` are drawn evenly.
        checkpoint: a state dict of `multi_quantization`.

    Returns: figures by name; only those of ours where `multi_quantization` is not installed.

    Raises:
        ValueError: the checkpoint is none, or of another dimension.
    """
    ours = load_reference_checkpoint(checkpoint).to(test_MD.device)
    if ours.dim != test_MD.shape[1]:
        raise ValueError(f"{checkpoint} takes {ours.dim} channels, the frames have {test_MD.shape[1]}")
    x_BD = test_MD[evenly(num_frames, len(test_MD)).to(test_MD.device)]
    calls = {"ours": lambda: ours.encode(x_BD), IN_TENSORS: lambda: ours.encode(x_BD, backend="tensors")}
    if importlib.util.find_spec("multi_quantization") is not None:
        import multi_quantization

        theirs = multi_quantization.Quantizer(ours.dim, ours.codebook_size, ours.num_codebooks)
        theirs.to(test_MD.device).load_state_dict(ours.state_dict())
        calls["multi_quantization"] = lambda: peer_encode(theirs, x_BD)
    # The first call builds tables; its codes are those of every later one.
    codes = {name: call() for name, call in calls.items()}
    times = median_seconds(list(calls.values()), test_MD.device)
    figures: dict[str, Any] = {"checkpoint": checkpoint.name, "frames": len(x_BD)}
    figures |= {"num_codebooks": ours.num_codebooks, "dim": ours.dim}
    for name, took_s in zip(calls, times, strict=True):
        figures[name] = {"encode_fps": len(x_BD) / took_s, "rrl": rrl(x_BD, ours.decode(codes[name]))}
    fps = {name: figures[name]["encode_fps"] for name in calls}
    figures["kernel_ratio"] = fps["ours"] / fps[IN_TENSORS]
    if "multi_quantization" in fps:
        figures["speed_ratio"] = fps["ours"] / fps["multi_quantization"]
    return figures
