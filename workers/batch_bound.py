"""How many padded seconds a batch should have on this device: more, until speed or memory says stop."""

import contextlib
import time
from collections.abc import Sequence

import torch
from lhotse import MonoCut
from torch import Tensor

from mvqkd.models.teachers import Teacher
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError

DEFAULT_SECONDS = 120.0
BOUNDS_S = (30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0)
GAIN = 1.03
"""A larger batch has to be faster by this: it takes more memory, and more of it is padding."""
BOUND_UTTERANCES = 64
"""Whose audio is taken to find out how large batches should be."""
LONG_S = 5.0
"""A batch that takes so long is large enough: what there is to gain, a batch's start, is milliseconds. On a busy
machine chance makes larger ones look faster, and trying those would take minutes."""
MOST_MEMORY = 0.5
"""Share of the device's memory that a batch may take: utterances of other lengths, and others on it, need some too."""


def batch_seconds_on(
    teacher: Teacher, loader: AudioLoader, cuts: Sequence[MonoCut], *, device: torch.device
) -> float | None:
    """`find_batch_seconds` on the audio of some of these cuts; None where no audio can be had."""
    waveforms = []
    for cut in cuts[:BOUND_UTTERANCES]:
        with contextlib.suppress(UtteranceError):  # who embeds them tells of it
            waveforms.append(loader(cut))
    return find_batch_seconds(teacher, waveforms, device=device) if waveforms else None


def find_batch_seconds(teacher: Teacher, waveforms: Sequence[Tensor], *, device: torch.device) -> float:
    """The bound to feed this teacher with on this device.

    Args:
        teacher: the loaded teacher.
        waveforms: float32 (num_samples,) of this corpus, taken again and again as far as a bound needs it.
        device: of the teacher.
    """
    best_s, best_speed = BOUNDS_S[0], 0.0
    for bound_s in BOUNDS_S:
        batch = _batch(waveforms, bound_s * teacher.info.sample_rate_hz)
        try:
            speed, memory = _speed(teacher, batch, device)
        except torch.OutOfMemoryError:
            memory, speed = 1.0, 0.0
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if speed < best_speed * GAIN or memory > MOST_MEMORY:
            return best_s
        best_s, best_speed = bound_s, speed
        if _seconds(batch, teacher) > LONG_S * speed:
            break
    return best_s


def _batch(waveforms: Sequence[Tensor], samples: float) -> list[Tensor]:
    """Waveforms of the length in the middle, as a sorted shard has them side by side, of so many samples together."""
    middle = sorted(waveforms, key=len)[len(waveforms) // 4 : max(1, 3 * len(waveforms) // 4)]
    batch = [middle[0]]
    while (len(batch) + 1) * max(map(len, batch)) <= samples:
        batch.append(middle[len(batch) % len(middle)])
    return sorted(batch, key=len, reverse=True)


def _speed(teacher: Teacher, batch: list[Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds of audio in a second, the better of two tries after a first one; and the share of memory it takes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken_s = []
    for _ in range(3):
        began = time.perf_counter()
        teacher.embed_batch(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken_s.append(time.perf_counter() - began)
    memory = 0.0
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(device).total_memory
    return _seconds(batch, teacher) / min(taken_s[1:]), memory


def _seconds(batch: Sequence[Tensor], teacher: Teacher) -> float:
    """Of audio in a batch."""
    return sum(map(len, batch)) / teacher.info.sample_rate_hz
