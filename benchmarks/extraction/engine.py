"""What the engine around a teacher can feed, with one that takes an hour of audio in a second and computes nothing.

A stand-in for an H100. Its codes are made up beforehand: there the quantizer works on the device too.

Shape suffixes: F frames, B utterances, N codebooks.
"""

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource
from torch import Tensor

from benchmarks.extraction.ours import run_worker
from mvqkd.models.quantizer import Quantizer
from mvqkd.models.teachers import EmbeddedBatch, TeacherInfo
from mvqkd.storage.contract import TableContract
from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.code import Clock, CodedBatch, Launched
from mvqkd.workers.embed import Embedder
from mvqkd.workers.extract import Extractor
from mvqkd.workers.feed import Loaded
from mvqkd.workers.shard import write_shard_cuts

RATE = 16_000
DIM = 8
CODEBOOKS = 8


class SleepingTeacher:
    """Embeds an hour of audio in `seconds_per_hour`, in which it sleeps as a host does that waits for its device."""

    def __init__(self, *, seconds_per_hour: float) -> None:
        self.seconds_per_hour = seconds_per_hour
        self.info = TeacherInfo(
            name="sleeping",
            architecture="none",
            sample_rate_hz=RATE,
            frame_rate_hz=50.0,
            frame_shift_samples=320,
            frame_offset_s=0.0125,
            dim=DIM,
            layer=1,
            num_layers=1,
            dtype="float32",
            fingerprint="0" * 16,
            min_samples=400,
            max_samples=None,
        )

    def embed_batch(self, waveforms: Sequence[Tensor], layers: Sequence[int] | None = None) -> EmbeddedBatch:
        """Frames of zeros."""
        lengths = [(len(waveform) - 400) // 320 + 1 for waveform in waveforms]
        return EmbeddedBatch(
            layers=(1,),
            frames=(torch.zeros(sum(lengths), DIM),),
            lengths=tuple(lengths),
            lengths_B=torch.tensor(lengths),
            finite_B=torch.ones(len(lengths), dtype=torch.bool),
        )


class StandInCoder:
    """In the place of `BatchCoder`: the device is busy until a time, and a batch is through when that has come."""

    def __init__(self, teacher: SleepingTeacher) -> None:
        self.teacher = teacher
        self._free_at = 0.0
        self._codes_FN = torch.randint(0, 256, (2**16, CODEBOOKS), dtype=torch.uint8)
        self.idle_s = 0.0

    def launch(self, items: Sequence[Loaded]) -> Launched:
        """Queue a batch behind those before."""
        waveforms = [item.waveform_T for item in items]
        batch = self.teacher.embed_batch(waveforms)
        now = time.perf_counter()
        if self._free_at:
            self.idle_s += max(0.0, now - self._free_at)
        seconds = sum(map(len, waveforms)) / RATE / 3600 * self.teacher.seconds_per_hour
        begin = max(now, self._free_at)
        self._free_at = begin + seconds
        frames = sum(batch.lengths)
        return Launched(
            lengths=batch.lengths,
            finite_B=batch.finite_B,
            parts=[
                CodedBatch(
                    self._codes_FN[:frames]
                    if frames <= len(self._codes_FN)
                    else self._codes_FN.repeat(2, 1)[:frames],
                    torch.full((len(waveforms),), 0.1, dtype=torch.float64),
                )
            ],
            clock=_DeviceClock(begin, self._free_at),
        )


class _DeviceClock(Clock):
    def __init__(self, begin: float, end: float) -> None:
        super().__init__(cuda=False)
        self._times = [begin, end, end]

    def wait(self) -> None:
        time.sleep(max(0.0, self._times[-1] - time.perf_counter()))


def write_speech(folder: Path, sources: Sequence[Path], *, hours: float, utterance_s: float) -> list[MonoCut]:
    """FLAC files of about `utterance_s` each, joined out of real speech; the same few files again and again, as links.

    Links, because an hour of audio a second is a lot of disk; the page cache holds them, as a fast disk would.
    """
    originals = _write_originals(folder, sources, utterance_s)
    cuts = []
    for number in range(int(hours * 3600 / utterance_s)):
        path = folder / f"u{number:07d}.flac"
        path.hardlink_to(originals[number % len(originals)])
        cuts.append(_cut(path, path.stem))
    return cuts


def put_speech(
    folder: Path, place: Location, sources: Sequence[Path], *, hours: float, utterance_s: float
) -> list[MonoCut]:
    """As `write_speech`, in a store, where each utterance is an object."""
    originals = _write_originals(folder, sources, utterance_s)
    cuts = []
    for number in range(int(hours * 3600 / utterance_s)):
        path = originals[number % len(originals)]
        cut = _cut(path, f"u{number:07d}")
        place.write_once(f"{cut.id}.flac", path.read_bytes())
        cut.recording.sources = [AudioSource("url", [0], place.full_url(f"{cut.id}.flac"))]
        cuts.append(cut)
    return cuts


def _write_originals(folder: Path, sources: Sequence[Path], utterance_s: float) -> list[Path]:
    audio = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in sources])
    size = int(utterance_s * RATE)
    folder.mkdir()
    originals = []
    for number in range(min(400, len(audio) // size)):
        path = folder / f"original-{number}.flac"
        soundfile.write(path, audio[number * size : (number + 1) * size], RATE)
        originals.append(path)
    return originals


def _cut(path: Path, name: str) -> MonoCut:
    recording = Recording.from_file(path)
    recording.id = name
    cut = recording.to_cut()
    assert isinstance(cut, MonoCut)
    cut.id = name
    return cut


def feed(cuts: Sequence[MonoCut], plan: Location, table: Location, **options: Any) -> dict[str, float]:
    """Audio hours per hour of the engine, and its CPU seconds per hour of audio.

    Args:
        options: `shard_hours`, `decode_threads`, `seconds_per_hour`, `s3` options of the audio.
    """
    per_shard = max(1, int(options["shard_hours"] * 3600 / cuts[0].duration))
    shards = [
        write_shard_cuts(plan, number, cuts[start : start + per_shard])
        for number, start in enumerate(range(0, len(cuts), per_shard))
    ]
    teacher = SleepingTeacher(seconds_per_hour=options["seconds_per_hour"])
    embedder = Embedder(
        teacher,  # type: ignore[arg-type]
        AudioLoader(RATE, s3=options.get("s3")),
        batch_seconds=600.0,
        decode_threads=options["decode_threads"],
    )
    index = IndexTable.create(table, _contract(teacher.info))
    quantizer = Quantizer(DIM, 256, CODEBOOKS)
    extractor = Extractor(embedder=embedder, tables=[(index, quantizer)], plan=plan)
    coder = StandInCoder(teacher)
    extractor._coder = coder  # type: ignore[assignment]
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = run_worker(extractor, shards)
    after = resource.getrusage(resource.RUSAGE_SELF)
    hours = sum(cut.duration for cut in cuts) / 3600
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "hours_per_hour": hours * 3600 / seconds,
        "cpu_s_per_hour": cpu_s / hours,
        "device_idle": coder.idle_s / seconds,
        "hours": hours,
        "utterance_s": cuts[0].duration,
        "utterances_per_s": len(cuts) / seconds,
    }


def _contract(info: TeacherInfo) -> TableContract:
    return TableContract(
        teacher_fingerprint=info.fingerprint,
        teacher_name=info.name,
        layer=1,
        quantizer_id="00000000",
        num_codebooks=CODEBOOKS,
        codebook_size=256,
        frame_rate_hz=info.frame_rate_hz,
        frame_offset_s=info.frame_offset_s,
        sample_rate_hz=RATE,
    )
