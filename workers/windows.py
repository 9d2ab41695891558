"""Long audio in windows: rows of a table that join without a seam, each embedded with some audio around it.

A window keeps a part of a cut. Its neighbours' parts begin and end where it ends and begins, on a grid that every
known teacher's frames fit, so that frame `t` of a window is the frame `t + start / shift` of the whole cut. What the
teacher hears reaches further, by the overlap, to both sides as far as the cut goes; the frames of that context are
dropped. How much context a window has stands in its custom field `mvqkd_context_s`: seconds before and after.

A window is a cut as any other, and whoever loads it gets the part that its frames are of.
"""

import math
from typing import TYPE_CHECKING

from mvqkd.workers.cuts import has_text

if TYPE_CHECKING:
    from lhotse import MonoCut

    from mvqkd.models.teachers import TeacherInfo

GRID_S = 0.2
"""Windows begin at its multiples. Frame shifts of 10, 20, 25, 40, 50 and 100 ms divide it, and it is a whole number of
samples at every usual rate."""
CONTEXT = "mvqkd_context_s"
_GRID_PER_S = round(1 / GRID_S)


def windows_of(cut: "MonoCut", *, window_s: float, overlap_s: float) -> list["MonoCut"]:
    """The windows of a long cut without text, in order; they are of about the same length and cover all of it.

    Args:
        cut: longer than `window_s`, without text.
        window_s: what the teacher hears at most, context included.
        overlap_s: context on each side of the part that is kept.

    Raises:
        ValueError: the cut has a text, or windows of this length keep less than a second of audio.
    """
    if has_text(cut):
        raise ValueError(f"{cut.id}: has a text, which nobody can split")
    context = on_grid(overlap_s)
    keeps = on_grid(window_s) - 2 * context
    if keeps < _GRID_PER_S:
        raise ValueError(f"windows of {window_s:g} s that overlap by {overlap_s:g} s keep less than a second")
    # In grid steps; what is left of the last one belongs to the last window, which is never the longest then.
    length = on_grid(cut.duration)
    count = math.ceil(round(cut.duration * _GRID_PER_S, 6) / keeps)
    starts = [-(-number * length // count) for number in range(count)]
    return [
        _window(cut, number, start, end, context)
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], None], strict=True))
    ]


def on_grid(seconds: float) -> int:
    """Whole grid steps in a time."""
    return math.floor(round(seconds * _GRID_PER_S, 6))


def heard(cut: "MonoCut") -> "MonoCut":
    """The cut with its context, as the teacher gets it; a cut that is no window as it is."""
    if not has_context(cut):
        return cut
    before_s, after_s = context_of(cut)
    from lhotse.utils import fastcopy

    return fastcopy(
        cut,
        start=round(cut.start - before_s, 8),
        duration=round(before_s + cut.duration + after_s, 8),
        supervisions=[],
    )


def context_of(cut: "MonoCut") -> tuple[float, float]:
    """Seconds of context before and after the cut; none of a cut that is no window."""
    before_s, after_s = (cut.custom or {}).get(CONTEXT, (0.0, 0.0))
    return before_s, after_s


def kept_frames(cut: "MonoCut", info: "TeacherInfo") -> slice:
    """Which of the frames that the teacher makes of `heard(cut)` are the cut's own.

    Raises:
        ValueError: the teacher's frames do not fit the grid.
    """
    if not has_context(cut):
        return slice(None)
    before_s, after_s = context_of(cut)
    first = _frames(before_s, info)
    # The last window keeps all that there is, as the whole cut would.
    return slice(first, first + _frames(cut.duration, info) if after_s else None)


def has_context(cut: "MonoCut") -> bool:
    """Whether the teacher hears more than the cut."""
    return any(context_of(cut))


def kept_samples(cut: "MonoCut", sample_rate_hz: int) -> int:
    """Samples of the cut itself, as its audio is loaded at this rate."""
    from lhotse.utils import compute_num_samples

    return compute_num_samples(cut.duration, sample_rate_hz)


def _frames(seconds: float, info: "TeacherInfo") -> int:
    samples = round(seconds * info.sample_rate_hz)
    frames, rest = divmod(samples, info.frame_shift_samples)
    if rest:
        raise ValueError(
            f"teacher {info.name}: its frames, {info.frame_shift_samples} samples at {info.sample_rate_hz} Hz, do not "
            f"divide the {GRID_S:g} s on which windows begin; cut long audio into files, without corpus.window_s"
        )
    return frames


def _window(cut: "MonoCut", number: int, start: int, end: int | None, context: int) -> "MonoCut":
    """One window; times in grid steps from the start of the cut, None is its end."""
    from lhotse.utils import fastcopy

    start_s = start / _GRID_PER_S
    end_s = cut.duration if end is None else end / _GRID_PER_S
    before_s = min(context, start) / _GRID_PER_S
    after_s = min(context / _GRID_PER_S, round(cut.duration - end_s, 8))
    supervisions = [
        fastcopy(s, start=round(s.start - start_s, 8))
        for s in cut.supervisions
        if s.start < end_s and s.start + s.duration > start_s
    ]
    return fastcopy(
        cut,
        id=f"{cut.id}-w{number:05d}",
        start=round(cut.start + start_s, 8),
        duration=round(end_s - start_s, 8),
        supervisions=supervisions,
        custom={**(cut.custom or {}), CONTEXT: [before_s, after_s]},
    )
