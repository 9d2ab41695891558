"""The demo's speakers: espeak-ng voices from the `espeakng-loader` wheel, plus a mild room and noise.

espeak-ng builds a voice from an accent (rules and phonemes) and a variant (formants, breath, pitch). A
speaker here is such a pair with a pitch, a pitch range and a speaking rate of its own.
"""

import ctypes
import functools
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np
import torch
import torchaudio

SAMPLE_RATE_HZ = 16_000

ACCENTS = (
    "en-us",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-029",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)

# From espeak/speak_lib.h: the numbers are part of its stable C interface.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_PHONEME_INPUT = 0x100
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A synthetic speaker.

    accent: espeak-ng voice, one of `ACCENTS`. variant: file name in espeak-ng's `voices/!v`.
    pitch and pitch_range: espeak-ng's scale, 0 to 99. rate_wpm: words a minute.
    """

    name: str
    accent: str
    variant: str
    pitch: int
    pitch_range: int
    rate_wpm: int

    @property
    def voice(self) -> str:
        """The name by which espeak-ng knows the voice, such as `en-us+f3`."""
        return f"{self.accent}+{self.variant}"


def _speakers(split: str, rows: tuple[tuple[str, str, int, int, int], ...]) -> tuple[Speaker, ...]:
    return tuple(
        Speaker(
            name=f"{split}{number:02d}",
            accent=accent,
            variant=variant,
            pitch=pitch,
            pitch_range=pitch_range,
            rate_wpm=rate_wpm,
        )
        for number, (accent, variant, pitch, pitch_range, rate_wpm) in enumerate(rows, start=1)
    )


TRAIN_SPEAKERS = _speakers(
    "train",
    (
        ("en-us", "f3", 55, 50, 165),
        ("en-us", "m1", 40, 40, 150),
        ("en", "f5", 60, 60, 175),
        ("en", "m7", 35, 45, 160),
        ("en-gb-x-rp", "Annie", 50, 50, 150),
        ("en-gb-scotland", "m4", 45, 60, 170),
        ("en-029", "f1", 45, 55, 155),
        ("en-us-nyc", "Lee", 50, 40, 180),
        ("en-gb-x-gbclan", "linda", 48, 50, 165),
        ("en-us", "robert", 38, 35, 145),
    ),
)
TEST_SPEAKERS = _speakers(
    "test",
    (
        ("en-us", "f2", 50, 45, 160),
        ("en-us", "m3", 45, 50, 170),
        ("en", "f4", 52, 55, 155),
        ("en", "m6", 42, 40, 165),
        ("en-gb-x-rp", "belinda", 50, 50, 175),
        ("en-gb-scotland", "Michael", 40, 45, 150),
        ("en-029", "quincy", 48, 60, 160),
        ("en-us-nyc", "steph", 55, 50, 150),
    ),
)
HELD_OUT_VARIANTS = frozenset(speaker.variant for speaker in TEST_SPEAKERS)

# Voices made to sound like machines, and whispers, are no speakers anybody wants to recognize.
_NOT_HUMAN = (
    "robo",
    "Robot",
    "whisper",
    "Demonic",
    "Storm",
    "croak",
    "Tweaky",
    "Nguyen",
    "kaukovalta",
    "Alex",
)


def teacher_variants() -> tuple[str, ...]:
    """Names of the variants that the teacher may hear: all human ones except those of the test speakers."""
    names = sorted(path.name for path in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir())
    return tuple(
        name
        for name in names
        if name not in HELD_OUT_VARIANTS and not any(part in name for part in _NOT_HUMAN)
    )


def random_teacher_speaker(rng: random.Random, variants: tuple[str, ...]) -> Speaker:
    """A speaker drawn anew: any accent, any of `variants`, pitch and rate of the demo's range and beyond."""
    return Speaker(
        name="teacher",
        accent=rng.choice(ACCENTS),
        variant=rng.choice(variants),
        pitch=rng.randint(20, 80),
        pitch_range=rng.randint(25, 75),
        rate_wpm=rng.randint(125, 205),
    )


class Espeak:
    """One espeak-ng engine with the wheel's own library and voices.

    The library keeps state over utterances (the phase of its pitch flutter) that nothing resets. Each engine
    therefore loads its own copy of the library, so that the same calls on a new engine give the same samples.

    Raises RuntimeError where the library cannot start, which means a broken `espeakng-loader` installation.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(espeakng_loader.get_library_path(), folder)
            self._library = ctypes.CDLL(str(copy))
        self._c_library = ctypes.CDLL(None)
        # The data path is given by hand: the one compiled into the wheel is that of its build machine.
        self.sample_rate_hz: int = self._library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _INITIALIZE_DONT_EXIT
        )
        if self.sample_rate_hz <= 0:
            raise RuntimeError(
                f"espeak-ng does not start with the data in {espeakng_loader.get_data_path()}; "
                "reinstall espeakng-loader"
            )
        self._chunks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(
        self, text: str, speaker: Speaker, *, pitch_shift: int = 0, rate_factor: float = 1.0
    ) -> np.ndarray:
        """Samples of `text` in the voice of `speaker`: int16 (samples,) at `sample_rate_hz`.

        Raises ValueError for a voice espeak-ng does not know and for a text it says nothing to.
        """
        if self._library.espeak_SetVoiceByName(speaker.voice.encode()):
            raise ValueError(f"speaker {speaker.name}: espeak-ng has no voice {speaker.voice!r}")
        self._library.espeak_SetParameter(_RATE, round(speaker.rate_wpm * rate_factor), 0)
        self._library.espeak_SetParameter(_PITCH, min(max(speaker.pitch + pitch_shift, 0), 99), 0)
        self._library.espeak_SetParameter(_RANGE, speaker.pitch_range, 0)
        # Lower case keeps espeak-ng from spelling words out; the letter A alone would be read as the article.
        spoken = " ".join("[['eI]]" if word == "A" else word.lower() for word in text.split()).encode()
        self._chunks.clear()
        # Breath is noise from the library's own generator and from the C library's, seeded by the clock.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._c_library.srand(1)
        self._library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, _CHARS_UTF8 | _PHONEME_INPUT, None, None)
        if not any(chunk.any() for chunk in self._chunks):
            raise ValueError(f"espeak-ng is silent on {text!r} with voice {speaker.voice!r}")
        return np.concatenate(self._chunks)


@functools.lru_cache(maxsize=2)
def _resampler(sample_rate_hz: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(sample_rate_hz, SAMPLE_RATE_HZ)


def to_16khz(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """int16 (samples,) at any rate to float32 (samples,) at 16 kHz, full scale at 1."""
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768.0)
    resampled: torch.Tensor = _resampler(sample_rate_hz)(waveform)
    return resampled.numpy()


def make_room_and_noise(
    waveform: np.ndarray,
    rng: np.random.Generator,
    *,
    snr_db: tuple[float, float],
    level_db: tuple[float, float] = (-30.0, -20.0),
    reverberation_s: tuple[float, float] = (0.05, 0.3),
) -> np.ndarray:
    """Puts a clean waveform, float32 (samples,) at 16 kHz, into a small room with background noise.

    The room is exponentially decaying noise behind the direct sound, of the given reverberation time
    (-60 dB); the background is noise whose spectrum falls by a random power of frequency. The limits are
    those of uniform draws from `rng`. Returns float32 (samples,), the same length, within -1 and 1.
    """
    length = len(waveform)
    decay_s = rng.uniform(*reverberation_s)
    tail = np.arange(int(decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    response = (rng.standard_normal(len(tail)) * np.exp(-6.9 * tail / decay_s)).astype(np.float32)
    response *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    size = -(-(length + len(response)) // 8192) * 8192  # small prime factors: fast transforms
    speech = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[:length]
    speech /= np.sqrt(np.mean(speech**2)) + 1e-9

    frequency = np.arange(size // 2 + 1, dtype=np.float32) + 20.0
    spectrum = rng.standard_normal((2, len(frequency)), dtype=np.float32)
    spectrum *= frequency ** np.float32(-rng.uniform(0.0, 1.0))
    noise = np.fft.irfft(spectrum[0] + 1j * spectrum[1], size)[:length]
    noise /= np.sqrt(np.mean(noise**2)) + 1e-9

    mixed = speech + noise * np.float32(10 ** (-rng.uniform(*snr_db) / 20))
    mixed *= np.float32(10 ** (rng.uniform(*level_db) / 20))
    return np.clip(mixed, -1.0, 1.0).astype(np.float32)
