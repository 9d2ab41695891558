"""Reads the parts of a transformers checkpoint that a teacher uses, without pickle and without the rest."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from mvqkd.models.teachers.errors import TeacherLoadError
from mvqkd.models.teachers.preprocessor import local_folder, preprocessor_of, read_json, unreachable

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# What the two halves of a weight-normalized convolution are called in files, and in today's torch modules.
_WEIGHT_NORM_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Files of a checkpoint in transformers format, found locally or on the hub.

    ``preprocessor`` is the feature extractor's configuration, None if the checkpoint has none.
    """

    name: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    weight_files: tuple[Path, ...]


def open_checkpoint(path: str, revision: str | None) -> Checkpoint:
    """Find a checkpoint's files; a name that is no local folder is looked up on the Hugging Face hub.

    Raises:
        TeacherLoadError: nothing there, no connection, or no safetensors weights.
    """
    folder = local_folder(path)
    location = path if folder is None else str(folder)

    def read(file_name: str) -> Mapping[str, Any] | None:
        file = _find(location, file_name, revision)
        return None if file is None else read_json(file)

    config = read("config.json")
    if config is None:
        raise TeacherLoadError(f"teacher {path} has no config.json: give a folder in transformers format")
    return Checkpoint(
        name=path if folder is None else folder.resolve().name,
        config=config,
        preprocessor=preprocessor_of(read),
        weight_files=_weight_files(path, location, revision),
    )


def _weight_files(path: str, location: str, revision: str | None) -> tuple[Path, ...]:
    single = _find(location, _WEIGHTS, revision)
    if single is not None:
        return (single,)
    index_file = _find(location, _INDEX, revision)
    if index_file is None:
        raise TeacherLoadError(
            f"teacher {path} has no {_WEIGHTS}; pickled weights (pytorch_model.bin) are never loaded: convert"
            " them once with transformers' save_pretrained, or give a hub revision that has safetensors"
        )
    shards = sorted(set(read_json(index_file)["weight_map"].values()))
    files = [_find(location, shard, revision) for shard in shards]
    missing = [shard for shard, file in zip(shards, files, strict=True) if file is None]
    if missing:
        raise TeacherLoadError(f"teacher {path} lacks the weight files {missing} of its index: download them")
    return tuple(file for file in files if file is not None)


def _find(location: str, file_name: str, revision: str | None) -> Path | None:
    try:
        found = cached_file(
            location, file_name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:
        raise unreachable(location, error) from error
    return None if found is None else Path(found)


def read_weights(checkpoint: Checkpoint, *, anchor: str, names: Iterable[str]) -> dict[str, Tensor]:
    """Read named tensors on the CPU, floating ones as float32 whatever their dtype in the file.

    Args:
        checkpoint: where to read.
        anchor: name of a tensor every such encoder has; what stands before it in the file is the prefix that
            a checkpoint with a head (``hubert.``, ``model.encoder.``) puts before all names.
        names: names in the encoder's state dict.

    Raises:
        TeacherLoadError: a tensor is not in the files, or a file is damaged.
    """
    files: dict[str, Path] = {}
    for file in checkpoint.weight_files:
        with _open_weights(file) as weights:
            files.update(dict.fromkeys(weights.keys(), file))
    prefixes = [name.removesuffix(anchor) for name in files if name == anchor or name.endswith(f".{anchor}")]
    if len(prefixes) != 1:
        raise TeacherLoadError(
            f"{checkpoint.name}: {len(prefixes)} tensors called *{anchor} in the weights, expected one: the"
            " weights do not belong to config.json's model_type"
        )
    wanted = {name: _name_in_file(prefixes[0] + name, files) for name in names}
    missing = sorted(name for name, stored in wanted.items() if stored not in files)
    if missing:
        raise TeacherLoadError(
            f"{checkpoint.name}: the weights lack {len(missing)} tensors, the first {missing[0]}: the"
            " checkpoint is incomplete or its config.json belongs to another model"
        )
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.weight_files:
        with _open_weights(file) as weights:
            for name, stored in wanted.items():
                if files[stored] == file:
                    tensor = weights.get_tensor(stored)
                    tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def _open_weights(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise TeacherLoadError(
            f"{file} is no readable safetensors file ({error}): download it again"
        ) from error


def _name_in_file(name: str, stored: Mapping[str, Path]) -> str:
    return name if name in stored else _canonical_name(name)


def _canonical_name(name: str) -> str:
    for module_name, file_name in _WEIGHT_NORM_NAMES.items():
        name = name.replace(module_name, file_name)
    return name


def fingerprint(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """First 16 hexadecimal characters of the SHA-256 over settings and weights as float32.

    Independent of file layout, device, path, and of how versions of torch name weight-normalized weights.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    canonical = {_canonical_name(name): tensor for name, tensor in weights.items()}
    for name, tensor in sorted(canonical.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
