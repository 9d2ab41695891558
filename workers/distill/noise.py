"""Noise mixed into training audio at a drawn signal-to-noise ratio.

Shape suffixes: T samples, N samples of noise.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from lhotse import MonoCut, Recording, load_manifest_lazy
from lhotse.audio.utils import AudioLoadingError
from torch import Tensor
from torchaudio.functional import add_noise

from mvqkd.workers.audio import AudioLoader

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")


class NoiseMixer:
    """Adds a random piece of a random noise recording to an utterance. The same name gets the same piece.

    Args:
        noises: cuts of noise, such as MUSAN's.
        loader: of their audio, at the rate of the utterances.
        share: of the utterances that get noise.
        snr_db: the lowest and the highest ratio of their energies, in decibels.
        seed: of what is drawn.

    Raises:
        ValueError: there is no noise.
    """

    def __init__(
        self,
        noises: Sequence[MonoCut],
        loader: AudioLoader,
        *,
        share: float,
        snr_db: tuple[float, float],
        seed: int,
    ) -> None:
        if not noises:
            raise ValueError(
                "distill.noise: no recordings of noise; give a folder of audio, or a cut manifest"
            )
        self._noises, self._loader = noises, loader
        self._share, self._snr_db, self._seed = share, snr_db, seed

    def __call__(self, waveform_T: Tensor, name: str) -> Tensor:
        """The float32 waveform (T,) with noise, or as it is.

        Raises:
            UtteranceError: names the noise that cannot be read.
        """
        rng = random.Random(f"{self._seed}/{name}")
        if rng.random() >= self._share:
            return waveform_T
        noise_N = self._loader(rng.choice(self._noises))
        snr_db = rng.uniform(*self._snr_db)
        # A piece that is too short goes round and round.
        start = rng.randrange(noise_N.numel())
        times = math.ceil(waveform_T.numel() / noise_N.numel())
        piece_T = noise_N.roll(-start).repeat(times)[: waveform_T.numel()]
        if not waveform_T.any() or not piece_T.any():
            return waveform_T  # silence has no ratio to anything
        return add_noise(waveform_T, piece_T, torch.tensor(snr_db))


def find_noises(path: str) -> list[MonoCut]:
    """Cuts of the noise in a local folder of audio (with its subfolders), or in a cut manifest (.jsonl, .jsonl.gz).

    Raises:
        ValueError: there is neither, or a file of the folder is no audio.
    """
    place = Path(path)
    if place.is_file():
        cuts = list(load_manifest_lazy(place))
        if not all(isinstance(cut, MonoCut) for cut in cuts):
            raise ValueError(
                f"distill.noise {path}: not a manifest of cuts of one channel; make one, or give a folder"
            )
        return cuts
    if not place.is_dir():
        raise ValueError(
            f"distill.noise {path}: no such folder or manifest on this machine; every worker needs to see it"
        )
    return [_noise(file, place) for file in sorted(place.rglob("*")) if file.suffix.lower() in AUDIO_SUFFIXES]


def _noise(file: Path, place: Path) -> MonoCut:
    try:
        recording = Recording.from_file(file, recording_id=str(file.relative_to(place)))
    except (AudioLoadingError, OSError) as error:
        raise ValueError(f"distill.noise: {file}: no audio that can be read; remove it") from error
    return MonoCut(
        id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        supervisions=[],
    )
