"""Which of Lhotse's transforms may stand between a recording and its codes: those that give one waveform, here.

Codes and the audio that a student hears have to be of one waveform, so a transform must be a function of the
audio alone; and it must run where the workers run, which is tried once for each kind.

Shape suffixes: C channels, T samples.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from lhotse import Recording
from lhotse.augmentation import AudioTransform

from mvqkd.workers.corpus.fields import is_number
from mvqkd.workers.corpus.refusals import shown

_REMEDY = "write the audio with it to files, or remove the transform"
_LIBRARIES = {
    "LoudnessNormalization": "pip install pyloudnorm",
    "DereverbWPE": "pip install nara_wpe",
    "Tempo": "install a torchaudio that has sox effects",
    "Compress": "use a codec and a rate that libsndfile has (pip install -U soundfile)",
    "Narrowband": "apt-get install libspandsp-dev, which the codec lpc10 needs",
}
# With arguments that are right for every audio, so that a failure is the library's and not one cut's.
_TRIED_WITH: dict[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {
    "Compress": lambda kwargs, rate: {"codec": kwargs.get("codec"), "compression_level": 0.5},
    "DereverbWPE": lambda kwargs, rate: {},
    "LoudnessNormalization": lambda kwargs, rate: {"target": -23.0},
    "Narrowband": lambda kwargs, rate: {
        "codec": kwargs.get("codec"), "source_sampling_rate": rate, "restore_orig_sr": True,
    },
    "Tempo": lambda kwargs, rate: {"factor": 0.9},
}  # fmt: skip
_POSITIVE = (
    "factor",
    "source_sampling_rate",
    "target_sampling_rate",
    "n_fft",
    "hop_length",
    "taps",
    "iterations",
)
_NUMBERS = ("gain_db", "compression_level", "target", "delay")


def transforms_problem(recording: Recording) -> str | None:
    """Why the transforms of a recording cannot be used, with the remedy; None where they can, or it has none."""
    for transform in recording.transforms or ():
        data = transform if isinstance(transform, dict) else transform.to_dict()
        problem = _problem(data, int(recording.sampling_rate))
        if problem is not None:
            return f"transform {problem}"
    return None


def _problem(transform: Mapping[str, Any], rate: int) -> str | None:
    name, kwargs = transform["name"], transform["kwargs"]
    if name == "ReverbWithImpulseResponse":
        if kwargs.get("rir") is None:
            return (
                f"{name} has no impulse response and draws one at random each time it is loaded, so that codes and "
                f"audio would be of two waveforms; give it a recorded impulse response (rir), or {_REMEDY}"
            )
        return _problem_of_response(kwargs["rir"], rate)
    if name not in _KNOWN:
        return f"{name} is not one that is known to give the same audio each time; {_REMEDY}"
    for key, value in kwargs.items():
        if (key in _POSITIVE and not (is_number(value) and 0 < value < 1e9)) or (
            key in _NUMBERS and value is not None and not is_number(value)
        ):
            return f"{name} has the {key} {shown(value)}; correct it or remove the cut"
    if name not in _TRIED_WITH:
        return None
    return _trial(name, str(kwargs.get("codec")) if "codec" in kwargs else None, rate)


def _problem_of_response(response: Mapping[str, Any], rate: int) -> str | None:
    """An impulse response is a recording, or a cut of one, and may have transforms of its own."""
    recording = response.get("recording", response)
    if not isinstance(recording, Mapping) or "sources" not in recording:
        return (
            f"ReverbWithImpulseResponse has a {response.get('type')} as impulse response; give it a recording"
        )
    problems = (_problem(t, rate) for t in recording.get("transforms") or ())
    return next((problem for problem in problems if problem is not None), None)


_KNOWN = {"Speed", "Volume", "Resample", "Clipping", *_TRIED_WITH}


@lru_cache(maxsize=1024)
def _trial(name: str, codec: str | None, rate: int) -> str | None:
    """Run the transform on a second of noise, twice: what went wrong, or None."""
    kind = f"{name} ({codec})" if codec else name
    audio_CT = np.random.default_rng(0).normal(0, 0.1, (1, rate)).astype(np.float32)
    kwargs = _TRIED_WITH[name]({"codec": codec}, rate)
    try:
        first, again = (
            AudioTransform.from_dict({"name": name, "kwargs": dict(kwargs)})(audio_CT.copy(), rate)
            for _ in range(2)
        )
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # a missing library shows as any error
        lines = str(error).splitlines() or [""]
        what = f"{type(error).__name__}: {lines[0]}"
        return f"{kind} does not run here at {rate} Hz ({what}); {_LIBRARIES[name]}, or {_REMEDY}"
    if not np.array_equal(first, again):
        return f"{kind} gives other audio each time it is loaded; {_REMEDY}"
    return None
