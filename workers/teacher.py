"""Loading a teacher where the work is: a local folder or hub name as it is, an `s3://` folder by a copy."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mvqkd.workers.section import SPEED_ONLY, PathText, Section, Text

if TYPE_CHECKING:
    import torch

    from mvqkd.models.teachers import Teacher


class TeacherConfig(Section):
    """The model whose embeddings are quantized; `path` is a local folder, an `s3://` folder or a hub name.

    `revision` is the commit, tag or branch of a teacher on the hub; folders have none.
    `layer` counts transformer layers from 1; the last one by default. `normalize` says whether the model
    wants waveforms of zero mean and unit variance; by default its preprocessor_config.json says so.
    `compile` runs its layers through torch.compile: faster on some devices, and rounded otherwise.
    """

    path: PathText
    revision: Text | None = None
    layer: Annotated[int, Field(gt=0)] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    whisper_window: Literal["short", "exact"] = "short"
    normalize: bool | None = None
    device: Annotated[Literal["auto", "cpu", "cuda"], SPEED_ONLY] = "auto"
    compile: Annotated[bool, SPEED_ONLY] = False


def choose_device(wanted: str) -> "torch.device":
    """`auto` is CUDA when there is one. Ray's fake GPUs make it necessary to ask torch itself."""
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def open_teacher(
    config: TeacherConfig, *, options: Mapping[str, str], layers: Sequence[int] | None = None
) -> "Teacher":
    """Load the teacher.

    Args:
        options: of the storage section.
        layers: that it may be asked for, in the place of `config.layer`.

    Raises:
        TeacherLoadError: no such folder or model, or not an architecture that is known.
        StorageError: the `s3://` folder cannot be read.
    """
    # Here, because a run file is read without torch and transformers.
    from mvqkd.models.teachers import TeacherLoadError, load_teacher
    from mvqkd.storage.location import open_location

    def load(path: str) -> "Teacher":
        return load_teacher(
            path,
            layer=config.layer if layers is None else None,
            layers=layers,
            device=choose_device(config.device),
            dtype=config.dtype,
            whisper_window=config.whisper_window,
            normalize=config.normalize,
            compile=config.compile,
            revision=config.revision,
        )

    if not config.path.startswith("s3://"):
        return load(config.path)
    location = open_location(config.path, options=options)
    with tempfile.TemporaryDirectory(prefix="mvqkd-teacher-") as folder:
        copy = Path(folder) / config.path.rstrip("/").rsplit("/", 1)[-1]
        copy.mkdir()
        names = location.list()
        if not names:
            raise TeacherLoadError(f"{config.path}: no such folder, or an empty one; check teacher.path")
        for name in names:
            (copy / name).write_bytes(location.read_bytes(name))
        return load(str(copy))


def teacher_sample_rate_hz(config: TeacherConfig, *, options: Mapping[str, str]) -> int:
    """The sampling rate that the teacher takes, without loading it.

    Raises:
        TeacherUnreachableError: it is on the hub, which cannot be asked now.
        TeacherLoadError: there is no such folder or model, or what it says is no rate.
        StorageError: the `s3://` folder cannot be read.
    """
    from mvqkd.models.teachers import sample_rate_hz_from

    return sample_rate_hz_from(_json_reader(config, options), name=config.path)


def teacher_dim(config: TeacherConfig, *, options: Mapping[str, str]) -> int:
    """Numbers of one of the teacher's embeddings, without loading it; raises as `teacher_sample_rate_hz`."""
    from mvqkd.models.teachers.preprocessor import dim_from

    return dim_from(_json_reader(config, options), name=config.path)


def _json_reader(
    config: TeacherConfig, options: Mapping[str, str]
) -> Callable[[str], Mapping[str, Any] | None]:
    """Reads the JSON files of the teacher's checkpoint, wherever it lies."""
    from mvqkd.models.teachers.preprocessor import json_reader

    if not config.path.startswith("s3://"):
        return json_reader(config.path, config.revision)
    from mvqkd.storage.artifacts import read_json
    from mvqkd.storage.errors import ObjectMissingError
    from mvqkd.storage.location import open_location

    location = open_location(config.path, options=options)

    def read(name: str) -> Mapping[str, Any] | None:
        try:
            content: Mapping[str, Any] = read_json(location, name)
        except ObjectMissingError:
            return None
        return content

    return read
