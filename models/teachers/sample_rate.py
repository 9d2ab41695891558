"""The sampling rate that a teacher takes, out of its configuration alone: no weights, no torch, no transformers."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from mvqkd.models.teachers.errors import TeacherLoadError

CONFIG_FILES = ("preprocessor_config.json", "processor_config.json", "config.json")
USUAL_RATE_HZ = 16_000
"""Of a checkpoint that does not say, as transformers' feature extractors take it."""


class TeacherUnreachableError(TeacherLoadError):
    """The hub, where the teacher is, cannot be asked now."""


def read_sample_rate_hz(path: str, *, revision: str | None = None) -> int:
    """The rate of the waveforms that a teacher takes.

    Args:
        path: a local folder, or a name on the Hugging Face hub.
        revision: of a teacher on the hub.

    Raises:
        TeacherUnreachableError: the hub cannot be reached, and its files are not in the cache.
        TeacherLoadError: no such teacher, or what it says is no rate.
    """
    folder = Path(path).expanduser()
    for name in CONFIG_FILES[:-1]:
        found = folder / name if folder.is_dir() else _from_hub(path, name, revision)
        if found is None or not found.is_file():
            continue
        content = _read(found)
        # Newer transformers keep the feature extractor's settings inside the processor's.
        settings = content.get("feature_extractor", content) if name == "processor_config.json" else content
        rate = settings.get("sampling_rate", USUAL_RATE_HZ) if isinstance(settings, dict) else None
        if isinstance(rate, bool) or not isinstance(rate, int) or rate <= 0:
            raise TeacherLoadError(f"{found}: sampling_rate must be a whole number of Hz, not {rate!r}")
        return rate
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise TeacherLoadError(f"teacher {path} has no config.json: give a folder in transformers format")
    return USUAL_RATE_HZ


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeacherLoadError(f"{path}: cannot be read as JSON ({error}); copy the teacher again") from error
    if not isinstance(content, dict):
        raise TeacherLoadError(f"{path}: holds no settings; copy the teacher again")
    return content


@lru_cache
def _from_hub(name: str, file: str, revision: str | None) -> Path | None:
    """The file in the hub's cache, fetched if need be; None where the teacher has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise TeacherUnreachableError(
            f"teacher {name}: the hub cannot be reached and {file} is not in its cache; give a local folder"
        ) from error
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise TeacherLoadError(f"teacher {name}: no such folder, and none on the hub ({error})") from error
