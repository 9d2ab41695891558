"""A small corpus, a teacher of a random projection and a random quantizer for the tests of the workers."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from torch import Tensor

from mvqkd.models.quantizer import Quantizer
from mvqkd.models.teachers import (
    EmbeddedBatch,
    NonFiniteEmbeddingError,
    TeacherInfo,
    UtteranceTooLongError,
    UtteranceTooShortError,
)
from mvqkd.storage.contract import TableContract
from mvqkd.storage.location import Location, open_location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.embed import Embedder
from mvqkd.workers.shard import Shard, write_shard_cuts

RATE = 16_000
DIM = 16


def sound(name: str, seconds: float, *, rate: int = RATE) -> np.ndarray:
    """float32 tone and noise that depend on the name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    time_s = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * rng.uniform(100, 1000) * time_s)
    return (0.3 * tone + 0.1 * rng.standard_normal(len(time_s))).astype(np.float32)


def write_sound(path: Path, seconds: float = 0.5, *, rate: int = RATE, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = sound(path.stem, seconds, rate=rate)
    soundfile.write(path, np.stack([data * (c + 1) / channels for c in range(channels)], axis=1), rate)
    return path


def cut_of(
    path: Path,
    *,
    text: str | None = "a cat",
    speaker: str = "ann",
    start: float = 0.0,
    duration: float | None = None,
) -> MonoCut:
    """A cut over an existing file."""
    info = soundfile.info(path)
    recording = Recording(
        id=path.stem,
        sources=[AudioSource("file", list(range(info.channels)), str(path))],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
    )
    duration = recording.duration - start if duration is None else duration
    supervision = SupervisionSegment(
        id=path.stem, recording_id=path.stem, start=0.0, duration=duration, text=text, speaker=speaker
    )
    return MonoCut(
        id=path.stem,
        start=start,
        duration=duration,
        channel=0,
        supervisions=[supervision],
        recording=recording,
    )


def make_cuts(
    folder: Path, lengths_s: Sequence[float], *, texts: Sequence[str | None] = ("a cat",)
) -> list[MonoCut]:
    """One cut for each length: files u000.wav, u001.wav, ... of two speakers in turn."""
    return [
        cut_of(
            write_sound(folder / f"u{number:03d}.wav", seconds),
            text=texts[number % len(texts)],
            speaker="ann" if number % 2 else "bob",
        )
        for number, seconds in enumerate(lengths_s)
    ]


def write_manifest(path: Path, cuts: Sequence[MonoCut]) -> Path:
    path.write_text("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts))
    return path


class FakeTeacher:
    """50 Hz frames of 400 samples times a fixed random matrix; can be told to fail."""

    def __init__(self, *, oom_samples: int | None = None, max_samples: int | None = None) -> None:
        self.info = TeacherInfo(
            name="fake",
            architecture="fake",
            sample_rate_hz=RATE,
            frame_rate_hz=50.0,
            frame_shift_samples=320,
            frame_offset_s=0.0125,
            dim=DIM,
            layer=1,
            num_layers=1,
            dtype="float32",
            fingerprint="f" * 16,
            min_samples=400,
            max_samples=max_samples,
        )
        self.oom_samples = oom_samples
        self.nan_samples: set[int] = set()
        self.batches: list[list[int]] = []
        generator = torch.Generator().manual_seed(5)
        self._projection = torch.randn(400, DIM, generator=generator) / 4

    def num_frames(self, num_samples: int) -> int:
        return 0 if num_samples < 400 else (num_samples - 400) // 320 + 1

    def info_at(self, layer: int) -> TeacherInfo:
        return replace(self.info, layer=layer)

    def embed_batch(self, waveforms: Sequence[Tensor], layers: Sequence[int] | None = None) -> EmbeddedBatch:
        """The frames of layer n are n times those of `encode`."""
        layers = layers or [1]
        try:
            embeddings: Sequence[Tensor | None] = self.encode(waveforms)
        except NonFiniteEmbeddingError as error:
            embeddings = error.embeddings
        lengths = [self.num_frames(waveform.numel()) for waveform in waveforms]
        pairs = zip(embeddings, lengths, strict=True)
        x_FD = torch.cat([torch.full((n, DIM), torch.nan) if x is None else x for x, n in pairs])
        return EmbeddedBatch(
            layers=tuple(layers),
            frames=tuple(layer * x_FD for layer in layers),
            lengths=tuple(lengths),
            lengths_B=torch.tensor(lengths),
            finite_B=torch.tensor([x is not None for x in embeddings]),
        )

    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        lengths = [waveform.numel() for waveform in waveforms]
        for index, length in enumerate(lengths):
            if length < 400:
                raise UtteranceTooShortError(
                    f"waveform {index} has {length} samples: leave it out", index=index
                )
            if self.info.max_samples is not None and length > self.info.max_samples:
                raise UtteranceTooLongError(f"waveform {index} has {length} samples: cut it", index=index)
        if self.oom_samples is not None and max(lengths) * len(lengths) > self.oom_samples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(lengths)
        embeddings: list[Tensor | None] = [w.unfold(0, 400, 320) @ self._projection for w in waveforms]
        bad = tuple(index for index, length in enumerate(lengths) if length in self.nan_samples)
        if bad:
            embeddings = [None if index in bad else x for index, x in enumerate(embeddings)]
            raise NonFiniteEmbeddingError(indexes=bad, embeddings=embeddings, dtype="float16")
        return [x for x in embeddings if x is not None]


class WatchedLoader(AudioLoader):
    """Calls `see` with each cut before it is loaded."""

    def __init__(self, see: Callable[[MonoCut], None]) -> None:
        super().__init__(RATE)
        self._see = see

    def __call__(self, cut: MonoCut) -> Tensor:
        self._see(cut)
        return super().__call__(cut)


def make_embedder(teacher: FakeTeacher | None = None, *, batch_seconds: float = 2.0) -> Embedder:
    return Embedder(
        teacher or FakeTeacher(), AudioLoader(RATE), batch_seconds=batch_seconds, decode_threads=2
    )


def make_quantizer(*, num_codebooks: int = 2) -> Quantizer:
    torch.manual_seed(3)
    return Quantizer(DIM, 16, num_codebooks)


def make_contract(*, num_codebooks: int = 2, layer: int = 1, search: str = "full") -> TableContract:
    info = FakeTeacher().info
    return TableContract(
        teacher_fingerprint=info.fingerprint,
        teacher_name=info.name,
        layer=layer,
        quantizer_id="abcdef01",
        num_codebooks=num_codebooks,
        codebook_size=16,
        frame_rate_hz=info.frame_rate_hz,
        frame_offset_s=info.frame_offset_s,
        sample_rate_hz=info.sample_rate_hz,
        search=search,
    )


def make_contract_of_embeddings(*, layer: int = 1) -> TableContract:
    info = FakeTeacher().info
    return TableContract(
        teacher_fingerprint=info.fingerprint,
        teacher_name=info.name,
        layer=layer,
        frame_rate_hz=info.frame_rate_hz,
        frame_offset_s=info.frame_offset_s,
        sample_rate_hz=info.sample_rate_hz,
        payload="embeddings",
        dim=DIM,
    )


def make_plan(folder: Path, cuts: Sequence[MonoCut], *, per_shard: int) -> tuple[Location, list[Shard]]:
    location = open_location(str(folder))
    shards = [
        write_shard_cuts(location, number, cuts[start : start + per_shard])
        for number, start in enumerate(range(0, len(cuts), per_shard))
    ]
    return location, shards
