"""How long after the speech a streaming recognizer's units come out.

Shape suffix: T samples.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mvqkd.models.decoding.streaming import StreamingDecoder, TimedUnit


@dataclass(frozen=True, kw_only=True)
class EmissionDelay:
    """Delays in seconds of audio; the time that computing takes is not in them.

    Attributes:
        units: how many units, or words, were measured.
        mean_s, median_s, p90_s, longest_s: over all of them.
    """

    units: int
    mean_s: float
    median_s: float
    p90_s: float
    longest_s: float


def hear(decoder: StreamingDecoder, waveform_T: Tensor, *, chunk_samples: int) -> list[TimedUnit]:
    """The units of one whole utterance, fed in chunks as a microphone would.

    Args:
        waveform_T: float32 at the student's rate.
        chunk_samples: of each chunk but the last.
    """
    if chunk_samples < 1:
        raise ValueError(f"chunk_samples must be at least 1, not {chunk_samples}")
    decoder.reset()
    units = [unit for chunk_T in waveform_T.split(chunk_samples) for unit in decoder.feed(chunk_T)]
    return units + decoder.finish()


def emission_delay(units: Sequence[TimedUnit], spoken_s: Sequence[float] | None = None) -> EmissionDelay:
    """From the speech to the moment when so much audio had come in that a unit came out.

    Args:
        units: of one or several utterances.
        spoken_s: when each of them had been spoken, by a forced alignment for instance; a unit may come out before. By
            default the frames that brought them: then what is measured is the wait for later audio, between nothing and
            `latency_s` plus a chunk, and not that a student may have learned to say a unit late.

    Raises:
        ValueError: there are no units, or not as many times.
    """
    if not units:
        raise ValueError("no units came out, so there is no delay to measure")
    times_s = [unit.time_s for unit in units] if spoken_s is None else list(spoken_s)
    if len(times_s) != len(units):
        raise ValueError(f"{len(units)} units and {len(times_s)} times; give one for each unit")
    return summarize([unit.heard_s - time_s for unit, time_s in zip(units, times_s, strict=True)])


def summarize(delays_s: Sequence[float]) -> EmissionDelay:
    """Of some delays, at least one."""
    ordered_s = sorted(delays_s)
    return EmissionDelay(
        units=len(ordered_s),
        mean_s=statistics.fmean(ordered_s),
        median_s=statistics.median(ordered_s),
        p90_s=ordered_s[-(-9 * len(ordered_s) // 10) - 1],
        longest_s=ordered_s[-1],
    )
