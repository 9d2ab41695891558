"""How loud audio is and what band it fills: what tells a telephone call from a studio before any teacher hears it.

Shape suffixes: T samples, F frames of 20 ms, S frequencies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lhotse import MonoCut

from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import decode_ahead

MOST_CUTS = 256
SILENCE_DBFS = -50.0
_FRAME_S = 0.02
_FLOOR = 1e-10  # -100 dB: digital silence has no logarithm


@dataclass(frozen=True, kw_only=True)
class Loudness:
    """Of a sample of audio.

    Attributes:
        utterances: measured.
        rms_dbfs: root mean square of an utterance in dB below full scale, their median.
        silence_share: of frames of 20 ms that are below -50 dBFS.
        upper_half_db: energy in the upper half of the band that the teacher hears, in dB below all of it, the median
            of the utterances. Audio that was sampled at half the rate has nearly none there.
    """

    utterances: int
    rms_dbfs: float
    silence_share: float
    upper_half_db: float


def measure_loudness(
    cuts: Sequence[MonoCut], load: Callable[[MonoCut], torch.Tensor], *, sample_rate_hz: int, threads: int
) -> Loudness | None:
    """Loudness of up to 256 of the cuts, evenly spaced; None where none of them can be loaded.

    Args:
        cuts: to choose from.
        load: gives a cut's float32 waveform (num_samples,).
        sample_rate_hz: of the waveforms.
        threads: that load.

    Raises:
        StorageError, OSError: the store or the disk cannot be read.
    """
    stride = max(1.0, len(cuts) / MOST_CUTS)
    chosen = [cuts[int(number * stride)] for number in range(min(len(cuts), MOST_CUTS))]
    rms, upper = [], []
    silent = frames = 0
    for waveform in decode_ahead(chosen, load, threads=threads, ahead=2 * threads):
        if isinstance(waveform, UtteranceError):
            continue
        audio_T = waveform.numpy().astype(np.float64)
        rms.append(_db(float(np.mean(audio_T**2))))
        power_S = np.abs(np.fft.rfft(audio_T)) ** 2
        upper.append(_db(float(power_S[len(power_S) // 2 :].sum() / (power_S.sum() + 1e-30))))
        samples = round(_FRAME_S * sample_rate_hz)
        whole_T = audio_T[: len(audio_T) // samples * samples]
        power_F = np.mean(whole_T.reshape(-1, samples) ** 2, axis=1)
        silent += int((power_F < 10 ** (SILENCE_DBFS / 10)).sum())
        frames += len(power_F)
    if not rms:
        return None
    return Loudness(
        utterances=len(rms),
        rms_dbfs=float(np.median(rms)),
        silence_share=silent / max(1, frames),
        upper_half_db=float(np.median(upper)),
    )


def _db(power: float) -> float:
    return 10 * float(np.log10(max(power, _FLOOR)))
