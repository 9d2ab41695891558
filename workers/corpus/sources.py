"""Where the audio of a cut lies: full paths while a corpus is read, relative ones in plans and tables."""

from collections.abc import Callable

from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.augmentation import ReverbWithImpulseResponse
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from mvqkd.workers.corpus.paths import is_full, under_root
from mvqkd.workers.cuts import UtteranceError


def with_full_sources(recording: Recording, root: str | None) -> Recording:
    """The recording with sources that any process can open, whatever its working directory."""

    def full(source: AudioSource) -> AudioSource:
        # In a manifest only files are named relative to it.
        return _with_path(source, under_root(source.source, root)) if source.type == "file" else source

    return change_sources(recording, full)


def resolved(cut: MonoCut, root: str | None) -> Recording:
    """The recording of a planned cut, with full sources.

    Raises:
        UtteranceError: a source is relative, and there is no root.
    """

    def full(source: AudioSource) -> AudioSource:
        if source.type not in ("file", "url") or is_full(source.source):
            return source
        if root is None:
            raise UtteranceError(
                cut.id,
                f"{source.source}: a path relative to the corpus; set corpus.root to where the corpus lies",
            )
        return _with_path(source, under_root(source.source, root))

    return change_sources(cut.recording, full)


def change_sources(recording: Recording, change: Callable[[AudioSource], AudioSource]) -> Recording:
    """The recording with other sources: its own, and those of impulse responses that it is to be convolved with."""
    transforms = recording.transforms
    if transforms and any(isinstance(t, ReverbWithImpulseResponse) and t.rir is not None for t in transforms):
        transforms = [_with_response(t, change) for t in transforms]
    return fastcopy(recording, sources=[change(s) for s in recording.sources], transforms=transforms)


def _with_response(transform: object, change: Callable[[AudioSource], AudioSource]) -> object:
    if not isinstance(transform, ReverbWithImpulseResponse) or transform.rir is None:
        return transform
    response = transform.rir
    if isinstance(response, Cut):
        response = fastcopy(response, recording=change_sources(response.recording, change))
    else:
        response = change_sources(response, change)
    return fastcopy(transform, rir=response)


def _with_path(source: AudioSource, path: str) -> AudioSource:
    return AudioSource("url" if "://" in path else source.type, source.channels, path, source.video)
