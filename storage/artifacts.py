"""Artifacts, `NAME.safetensors` with `NAME.json` beside it, and JSON reports."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mvqkd.storage.errors import ArtifactError, ObjectMissingError, StorageError
from mvqkd.storage.location import Location
from mvqkd.storage.strict_json import parse_json

_DIGEST_KEY = "safetensors_sha256"


def save_artifact(
    location: Location, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Write `name.safetensors`, then `name.json`: the JSON file is the commit.

    The same content gives the same bytes. A writer killed while it replaces an artifact may leave a pair that
    `load_artifact` refuses; a checkpoint that must survive gets a name of its own, such as its step.

    Args:
        location: folder of the artifact.
        name: without suffix.
        tensors: numpy arrays of any shape; dtypes of safetensors.
        metadata: JSON values; may not use the key `safetensors_sha256`.

    Raises:
        ArtifactError: metadata or tensors cannot be stored.
        StorageError: the place refused an object.
    """
    where = location.full_url(name)
    if _DIGEST_KEY in metadata:
        raise ArtifactError(f"{where}: the metadata key {_DIGEST_KEY!r} is reserved; rename it")
    try:
        data = safetensors.numpy.save({key: np.asarray(array, order="C") for key, array in tensors.items()})
    except (KeyError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"{where}: a tensor has a dtype safetensors lacks ({error}); convert it"
        ) from error
    content = _to_json(where, {**metadata, _DIGEST_KEY: hashlib.sha256(data).hexdigest()})
    location.replace(f"{name}.safetensors", data)
    location.replace(f"{name}.json", content)


def load_artifact(location: Location, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of an artifact.

    Raises:
        ArtifactError: missing, incomplete, damaged, or the two files do not belong together.
        StorageError: the place refused to be read.
    """
    where = location.full_url(f"{name}.safetensors")
    metadata, digest = _read_metadata(location, name)
    try:
        data = location.read_bytes(f"{name}.safetensors")
    except ObjectMissingError as error:
        raise _missing(error, name) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ArtifactError(f"{where}: {name}.json is of another file (SHA-256); make it again")
    try:
        return safetensors.numpy.load(data), metadata
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{where}: not a safetensors file ({error}); make the artifact again") from error


def load_metadata(location: Location, name: str) -> dict[str, Any]:
    """The metadata of an artifact as it was given to `save_artifact`; the tensors are not read.

    Raises:
        ArtifactError: missing, damaged, or no artifact's; whether the tensors belong to it, `load_artifact` says.
        StorageError: the place refused to be read.
    """
    return _read_metadata(location, name)[0]


def write_json(location: Location, path: str, value: Any) -> None:
    """Write `value` as JSON in one step, over what is there. Raises `ArtifactError` for values JSON lacks."""
    location.replace(path, _to_json(location.full_url(path), value))


def read_json(location: Location, path: str) -> Any:
    """The value of a JSON object.

    Raises:
        ObjectMissingError: there is none.
        ArtifactError: it is not JSON, or a key comes twice in it, or NaN; names it.
    """
    try:
        return parse_json(location.read_bytes(path))
    except StorageError:
        raise
    except ValueError as error:
        raise ArtifactError(f"{location.full_url(path)}: not JSON ({error}); make it again") from error


def _read_metadata(location: Location, name: str) -> tuple[dict[str, Any], str]:
    """Metadata and the digest of the tensors."""
    try:
        metadata = read_json(location, f"{name}.json")
    except ObjectMissingError as error:
        raise _missing(error, name) from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_DIGEST_KEY), str):
        raise ArtifactError(f"{location.full_url(name)}.json: not of an artifact; make it again")
    digest = metadata.pop(_DIGEST_KEY)
    return metadata, digest


def _missing(error: ObjectMissingError, name: str) -> ArtifactError:
    return ArtifactError(f"{error.url}: missing; make artifact {name!r} again")


def _to_json(where: str, value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: cannot be written as JSON ({error}); convert the value") from error
