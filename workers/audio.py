"""Audio of cuts: loading with clear errors.

Shape suffixes: C channels, T samples.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.augmentation import AudioTransform, Resample
from lhotse.utils import compute_num_samples, fastcopy
from torch import Tensor

from mvqkd.storage.location import is_url
from mvqkd.workers.corpus.paths import full_root, under_root
from mvqkd.workers.corpus.sources import change_sources, resolved
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.fetches import Fetches

DURATION_TOLERANCE_S = 0.025
"""About a teacher's frame: manifests round durations, and lossy formats add a few samples."""

_RATE_DEPENDENT = frozenset(("Compress", "DereverbWPE", "LoudnessNormalization", "Tempo"))


class AudioLoader:
    """Loads the waveform of a cut at one sampling rate. Safe to call from several threads.

    Args:
        sample_rate_hz: audio of another rate is resampled.
        s3: the storage section's options, for `s3://` recordings.
        root: `corpus.root`, where the relative paths of planned cuts lie.
    """

    def __init__(
        self, sample_rate_hz: int, *, s3: Mapping[str, Any] | None = None, root: str | None = None
    ) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._fetches = Fetches(s3 or {})
        self._root = full_root(root)

    @property
    def root_is_in_store(self) -> bool:
        """Whether relative paths of planned cuts lead into a store."""
        return self._root is not None and is_url(self._root)

    def begin(self, cut: MonoCut) -> None:
        """Begin to fetch what of the cut's audio lies in a store, for a call that comes soon."""
        for source in cut.recording.sources:
            if source.type in ("file", "url"):
                url = under_root(source.source, self._root)
                if is_url(url):
                    self._fetches.begin(url)

    def __call__(self, cut: MonoCut) -> Tensor:
        """float32 waveform (num_samples,).

        Raises:
            UtteranceError: the audio is missing, corrupt, empty, of another length than its manifest says, holds
                NaN, or cannot be decoded or transformed here.
            StorageError, OSError: the object store or the disk cannot be read, which is not the utterance's
                fault.
        """
        recording = resolved(cut, self._root)
        plain_T = _read_plain(cut, recording, self.sample_rate_hz)
        if plain_T is not None:
            return torch.from_numpy(plain_T)
        where = ", ".join(str(source.source) for source in recording.sources if source.type != "memory")
        is_part = cut.duration < recording.duration - DURATION_TOLERANCE_S
        fetched = fastcopy(
            cut, recording=change_sources(recording, lambda s: self._fetched(cut.id, s, again=is_part))
        )
        if recording.sources[0].type == "url":
            plain_T = _read_plain(cut, fetched.recording, self.sample_rate_hz)
            if plain_T is not None:
                return torch.from_numpy(plain_T)
        try:
            _check_files(fetched, where)
            audio_CT = _load(fetched, self.sample_rate_hz)
            waveform_T = np.ascontiguousarray(audio_CT[0], dtype=np.float32)
        except (MemoryError, UtteranceError):
            raise
        except Exception as error:  # decoders and transforms raise what they like
            # The decoders do not tell a bad file from a bad disk.
            for source in recording.sources:
                if source.type == "file":
                    _read_through(source.source)
            raise UtteranceError(
                cut.id,
                f"{where}: the audio cannot be read as its manifest says ({_shortly(error)}); write either again",
            ) from error
        if waveform_T.size == 0:
            raise UtteranceError(cut.id, f"{where}: the audio has no samples; remove it from the manifest")
        if not np.isfinite(waveform_T).all():
            raise UtteranceError(cut.id, f"{where}: the audio holds NaN or infinity; write the file again")
        return torch.from_numpy(waveform_T)

    def _fetched(self, cut_id: str, source: AudioSource, *, again: bool) -> AudioSource:
        """The source, in memory where it is remote, inside of a tar file, or of a kind that is best read so."""
        try:
            if source.type == "url":
                return AudioSource("memory", source.channels, self._fetches.get(source.source, again=again))
            if source.type == "file":
                _probe(cut_id, source.source)
                if source.source.lower().endswith(".sph") and _is_decodable(source.source):
                    # Lhotse would run sph2pipe, which few have and only the codec shorten needs.
                    return AudioSource("memory", source.channels, Path(source.source).read_bytes())
        except FileNotFoundError as error:
            raise UtteranceError(
                cut_id, f"{source.source}: no such audio file; check the manifest's paths"
            ) from error
        return source


def _read_plain(cut: MonoCut, recording: Recording, sample_rate_hz: int) -> np.ndarray | None:
    """float32 (num_samples,) of a mono WAV or FLAC file that is as its manifest says and needs no change.

    The file is opened once, which takes a fifth of the time of the general way. Whatever is not so plain, or not in
    order, gives None: the general way reads it, or has the words for what is wrong.
    """
    source = recording.sources[0]
    if (
        recording.transforms
        or recording.sampling_rate != sample_rate_hz
        or len(recording.sources) != 1
        or list(source.channels) != [cut.channel]
    ):
        return None
    try:
        if source.type == "memory":
            with soundfile.SoundFile(io.BytesIO(source.source)) as file:
                return _plain_samples(cut, file, sample_rate_hz)
        if source.type == "file" and source.source.lower().endswith((".wav", ".flac")):
            with (
                Path(source.source).open("rb", 0) as opened,
                soundfile.SoundFile(opened.fileno(), closefd=False) as file,
            ):
                return _plain_samples(cut, file, sample_rate_hz)
    except (soundfile.LibsndfileError, OSError):
        pass
    return None


def _plain_samples(cut: MonoCut, file: soundfile.SoundFile, sample_rate_hz: int) -> np.ndarray | None:
    """float32 (num_samples,) of the cut; None where the file is not as its manifest says, or of another format."""
    first = compute_num_samples(cut.start, sample_rate_hz)
    num_samples = compute_num_samples(cut.duration, sample_rate_hz)
    if (
        (file.samplerate, file.channels) != (sample_rate_hz, 1)
        or file.format not in ("WAV", "WAVEX", "FLAC")
        or abs(file.frames / file.samplerate - cut.recording.duration) > DURATION_TOLERANCE_S
        or first + num_samples > file.frames
    ):
        return None
    file.seek(first)
    waveform_T: np.ndarray = file.read(num_samples, dtype="float32")
    in_order = len(waveform_T) == num_samples > 0 and math.isfinite(float(waveform_T.sum()))
    return waveform_T if in_order else None


def _load(cut: MonoCut, sample_rate_hz: int) -> np.ndarray:
    """float32 (channels, num_samples) at the rate asked for."""
    recording = cut.recording
    names = {t["name"] if isinstance(t, dict) else type(t).__name__ for t in recording.transforms or ()}
    if recording.sampling_rate == sample_rate_hz or not names & _RATE_DEPENDENT:
        return cut.resample(sample_rate_hz).load_audio()
    # Lhotse would run the transforms with the new rate in the place of the recording's.
    audio_CT = Resample(recording.sampling_rate, sample_rate_hz)(cut.load_audio())
    return audio_CT[:, : compute_num_samples(cut.duration, sample_rate_hz)]


def _is_decodable(path: str) -> bool:
    try:
        soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    return True


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


def _check_files(cut: MonoCut, where: str) -> None:
    """Refuse audio of another length, or of other channels, than its manifest says.

    Lhotse itself cuts off or mirrors up to half a second, so that a replaced file would go unnoticed, and takes
    the first channel of a file for whichever one the manifest names.
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
            named = list(source.channels)
            if info.channels != len(named) and named != list(range(len(named))):
                raise UtteranceError(
                    cut.id,
                    f"{where}: has {info.channels} channels, but its manifest names {named}, so that nobody knows "
                    "which is which; name all of them in the manifest, in order",
                )


def _shortly(error: BaseException) -> str:
    """The line of Lhotse's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
