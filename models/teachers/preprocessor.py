"""What a checkpoint says of the audio that its teacher takes; JSON files only, without loading a model."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mvqkd.models.teachers.errors import TeacherLoadError, TeacherUnreachableError

DEFAULT_RATE_HZ = 16_000
"""Of transformers' feature extractors, where the checkpoint says nothing."""

ReadJson = Callable[[str], Mapping[str, Any] | None]
"""The content of a file of a checkpoint by its name; None where there is no such file."""


def local_folder(path: str) -> Path | None:
    """The folder of a checkpoint; None for a name on the hub.

    Raises:
        TeacherLoadError: a URL, or a folder that is not there.
    """
    folder = Path(path).expanduser()
    if "://" in path:
        raise TeacherLoadError(f"teacher {path!r} is a URL: download it first and give the local folder")
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith(("~", ".")) or path.count("/") > 1:
        raise TeacherLoadError(f"no teacher folder at {path}: give a folder in transformers format")
    return None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        TeacherLoadError: it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise TeacherLoadError(f"{file} is not valid JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise TeacherLoadError(f"{file} holds no JSON object: download it again")
    return content


def preprocessor_of(read: ReadJson) -> Mapping[str, Any] | None:
    """The feature extractor's settings; None if the checkpoint has none."""
    preprocessor = read("preprocessor_config.json")
    if preprocessor is None:
        # Newer transformers keep the feature extractor's settings inside the processor's.
        preprocessor = (read("processor_config.json") or {}).get("feature_extractor")
    return preprocessor


def sample_rate_hz_of(preprocessor: Mapping[str, Any] | None, *, architecture: str, name: str) -> int:
    """Samples a second that a teacher takes.

    Raises:
        TeacherLoadError: no whole number above 0; or a Whisper checkpoint of another rate than 16 kHz, whose
            spectrogram would not be the one that it was trained on.
    """
    rate_hz = (preprocessor or {}).get("sampling_rate", DEFAULT_RATE_HZ)
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, int | float) or rate_hz < 1 or rate_hz % 1:
        raise TeacherLoadError(
            f"{name}: sampling_rate {rate_hz!r} of preprocessor_config.json is no number of samples a second; "
            "set it to the rate that the model was trained on, such as 16000"
        )
    if architecture == "whisper" and rate_hz != DEFAULT_RATE_HZ:
        raise TeacherLoadError(
            f"{name}: sampling_rate {rate_hz} of preprocessor_config.json, but Whisper encoders take "
            f"{DEFAULT_RATE_HZ}: give the checkpoint's own file"
        )
    return int(rate_hz)


def sample_rate_hz_from(read: ReadJson, *, name: str) -> int:
    """The same of a checkpoint wherever it lies, by whatever reads its JSON files.

    Raises:
        TeacherLoadError: as `sample_rate_hz_of`, or there is no config.json.
    """
    config = read("config.json")
    if config is None:
        raise TeacherLoadError(f"teacher {name} has no config.json: give a folder in transformers format")
    return sample_rate_hz_of(preprocessor_of(read), architecture=str(config.get("model_type")), name=name)


def read_sample_rate_hz(path: str, revision: str | None = None) -> int:
    """Samples a second that a teacher takes, without loading it.

    Args:
        path: folder in transformers format, or a name on the hub, whose small JSON files are fetched and kept.
        revision: branch, tag or commit on the hub.

    Raises:
        TeacherLoadError: the checkpoint is not there, not reachable, or says no rate that can be.
    """
    return sample_rate_hz_from(json_reader(path, revision), name=path)


def dim_from(read: ReadJson, *, name: str) -> int:
    """Numbers of an embedding, by the `config.json` of a checkpoint.

    Raises:
        TeacherLoadError: it has no such file, or says nothing of it.
    """
    config = read("config.json") or {}
    # Whisper's is called as in its paper.
    dim = config.get("hidden_size", config.get("d_model"))
    if type(dim) is not int or dim < 1:
        raise TeacherLoadError(
            f"teacher {name}: config.json says no hidden_size or d_model; give a folder in transformers format"
        )
    return dim


def json_reader(path: str, revision: str | None = None) -> ReadJson:
    """Reads the JSON files of a checkpoint; arguments and errors as of `read_sample_rate_hz`."""
    folder = local_folder(path)

    def read(file_name: str) -> Mapping[str, Any] | None:
        if folder is None:
            file = _from_hub(path, file_name, revision)
        else:
            file = folder / file_name
        return read_json(file) if file is not None and file.is_file() else None

    return read


def unreachable(name: str, error: Exception) -> TeacherUnreachableError:
    """What to say of a name that is no folder and could not be fetched."""
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TeacherUnreachableError(
        f"{name!r} is no local folder and could not be fetched from the Hugging Face hub"
        f" ({first_line}). Check the name; on a machine without a connection, fetch it"
        f" elsewhere with `hf download {name} --local-dir FOLDER` and give FOLDER"
    )


@lru_cache
def _from_hub(name: str, file_name: str, revision: str | None) -> Path | None:
    # Here, as a local folder needs nothing of it.
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download(name, file_name, revision=revision))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError):
            return None
        # Without a connection: what is kept of the checkpoint may say that there is no such file.
        if not isinstance(error, HFValidationError) and (
            try_to_load_from_cache(name, file_name, revision=revision) is _CACHED_NO_EXIST
        ):
            return None
        raise unreachable(name, error) from error
