"""Audio of cuts: loading with clear errors."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import MonoCut
from lhotse.audio import AudioLoadingError, AudioSource, DurationMismatchError
from lhotse.augmentation import AudioTransform
from lhotse.utils import fastcopy
from torch import Tensor

from mvqkd.workers.corpus.files import fetch
from mvqkd.workers.cuts import UtteranceError

DURATION_TOLERANCE_S = 0.025
"""About a teacher's frame: manifests round durations, and lossy formats add a few samples."""


class AudioLoader:
    """Loads the waveform of a cut at one sampling rate. Safe to call from several threads.

    Args:
        sample_rate_hz: audio of another rate is resampled.
        s3: the storage section's options, for `s3://` recordings.
    """

    def __init__(self, sample_rate_hz: int, *, s3: Mapping[str, Any] | None = None) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._options = s3 or {}

    def __call__(self, cut: MonoCut) -> Tensor:
        """float32 waveform (num_samples,).

        Raises:
            UtteranceError: the audio is missing, corrupt, empty, of another length than its manifest says, or
                holds NaN.
            StorageError, OSError: the object store or the disk cannot be read, which is not the utterance's
                fault.
        """
        where = ", ".join(str(source.source) for source in cut.recording.sources if source.type != "memory")
        try:
            fetched = self._fetched(cut)
        except FileNotFoundError as error:
            raise UtteranceError(
                cut.id, f"{where}: no such audio file; check the manifest's paths"
            ) from error
        _check_duration(fetched, where)
        try:
            audio_CT = fetched.resample(self.sample_rate_hz).load_audio()
        # Lhotse asserts that the channel and the start of the cut exist.
        except (
            AudioLoadingError,
            DurationMismatchError,
            OSError,
            RuntimeError,
            ValueError,
            AssertionError,
        ) as error:
            # The decoders do not tell a bad file from a bad disk.
            for source in cut.recording.sources:
                if source.type == "file":
                    _read_through(source.source)
            problem = _shortly(error)
            raise UtteranceError(
                cut.id,
                f"{where}: the audio cannot be read as its manifest says ({problem}); write either again",
            ) from error
        waveform_T = np.ascontiguousarray(audio_CT[0], dtype=np.float32)
        if waveform_T.size == 0:
            raise UtteranceError(cut.id, f"{where}: the audio has no samples; remove it from the manifest")
        if not np.isfinite(waveform_T).all():
            raise UtteranceError(cut.id, f"{where}: the audio holds NaN or infinity; write the file again")
        return torch.from_numpy(waveform_T)

    def _fetched(self, cut: MonoCut) -> MonoCut:
        """The cut with remote audio, and audio inside of tar files, brought into memory."""
        sources = []
        for source in cut.recording.sources:
            if source.type == "file":
                _probe(cut.id, source.source)
            if source.type == "url":
                source = AudioSource("memory", source.channels, fetch(source.source, self._options))
            sources.append(source)
        return fastcopy(cut, recording=fastcopy(cut.recording, sources=sources))


def _probe(cut_id: str, path: str) -> None:
    """Open a local file and read a byte.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder.
        UtteranceError: it may not be read.
        OSError: the disk cannot be read, or no file can be opened any more.
    """
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except PermissionError as error:
        raise UtteranceError(
            cut_id, f"{path}: the audio file may not be read; check its permissions"
        ) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(path) from error


def _read_through(path: str) -> None:
    """Read all of the file, to raise the OSError that a decoder has hidden."""
    with Path(path).open("rb") as file:
        while file.read(2**20):
            pass


def _check_duration(cut: MonoCut, where: str) -> None:
    """Refuse audio of another length than its manifest says.

    Lhotse itself cuts off or mirrors up to half a second, so that a replaced file would go unnoticed.
    """
    expected_s = cut.recording.duration
    for transform in reversed(cut.recording.transforms or []):
        if not isinstance(transform, AudioTransform):
            transform = AudioTransform.from_dict(transform)
        _, expected_s = transform.reverse_timestamps(0.0, expected_s, cut.recording.sampling_rate)
    for source in cut.recording.sources:
        if cut.channel in source.channels and source.type in ("file", "memory"):
            file = io.BytesIO(source.source) if source.type == "memory" else source.source
            try:
                info = soundfile.info(file)
            except soundfile.LibsndfileError:
                continue  # Lhotse has other decoders, or words for what is wrong with it
            found_s = info.frames / info.samplerate
            # Longer than any recording is a header written before its audio, without a length.
            if abs(found_s - expected_s) > DURATION_TOLERANCE_S and found_s < 1e6:
                raise UtteranceError(
                    cut.id,
                    f"{where}: lasts {found_s:.3f} s, but {expected_s:.3f} s by its manifest; write the "
                    "manifest again, and extract again if the file was changed after extraction",
                )


def _shortly(error: BaseException) -> str:
    """The line of Lhotse's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
