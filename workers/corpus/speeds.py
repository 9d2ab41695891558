"""Copies of a cut at other speeds, as Lhotse perturbs and names them.

A plan lists the copies as cuts of their own: a shard's name, its hours and its failures speak of them, and what a table
keeps of a row (`cut`, `speed`, `num_samples`) is the very audio that was coded, for training to load again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mvqkd.workers.cuts import speed_of

if TYPE_CHECKING:
    from lhotse import MonoCut


def at_speeds(cut: "MonoCut", speeds: Sequence[float]) -> "list[MonoCut]":
    """The cut at each of the speeds: `x_sp0.9` of a cut `x`, and the cut itself at 1.0."""
    return [cut if speed == 1.0 else perturbed(cut, speed) for speed in speeds]


def perturbed(cut: "MonoCut", speed: float) -> "MonoCut":
    """The cut at another speed, with the ids that Lhotse gives it, its recording and its supervisions."""
    copy = cut.perturb_speed(speed)
    # Lhotse rounds start and duration each for itself, so that their sum may be a sample behind the recording's end.
    last = copy.recording.num_samples / copy.recording.sampling_rate - copy.start
    if copy.duration > last:
        copy.duration = round(last, 8)
    return copy


def speed_problem(cut: "MonoCut") -> str | None:
    """Why copies of this cut cannot be made: it is one itself."""
    speed = speed_of(cut)
    if speed == 1.0:
        return None
    return (
        f"is at speed {speed:g} already, and extract.speeds makes such copies; leave perturbed cuts out of the "
        "manifest, or set extract.speeds to [1.0]"
    )
