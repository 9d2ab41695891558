"""The way of a usual cut from its line in a manifest to its line in a plan, without building Lhotse's objects.

Lhotse needs 50 microseconds to build a cut and this program 20 to write it again; ten million of them are ten minutes
of two cores. Here a cut with nothing unusual in it, which is used as it is, takes a sixth of that. Everything else
gets None, and goes the long way, which alone refuses, clips and says why: a line that comes out here is, byte for
byte, what comes out there (tests/fuzz compares the two).
"""

import json
from json.encoder import encode_basestring  # as `json.dumps(..., ensure_ascii=False)` writes text
from typing import Any, TypeGuard

from mvqkd.workers.corpus.config import CorpusConfig
from mvqkd.workers.corpus.fields import MAX_DEPTH, NUM_SAMPLES_TOLERANCE_S
from mvqkd.workers.cuts import TEXT_TOLERANCE_S, Planned

_CUT_KEYS = frozenset(("id", "start", "duration", "channel", "supervisions", "recording", "type"))
_RECORDING_KEYS = frozenset(("id", "sources", "sampling_rate", "num_samples", "duration", "channel_ids"))
_SUPERVISION_KEYS = frozenset(
    ("id", "recording_id", "start", "duration", "channel", "text", "language", "speaker", "gender")
)
_SOURCE_KEYS = frozenset(("type", "channels", "source"))
_MIN_RATE = 1000
_LARGE = 1e15  # beyond this the long way knows what to say


class QuickCuts:
    """Lines of a manifest to planned cuts.

    Args:
        config: of the corpus.
        sample_rate_hz: as of `Corpus`.
        root: `Corpus.root`.
    """

    def __init__(self, config: CorpusConfig, *, sample_rate_hz: int, root: str | None) -> None:
        self._min_s, self._max_s = config.min_duration_s, config.max_duration_s
        # From there on half a sample, which `clipped` leaves alone, is less than a frame of any teacher.
        self._min_rate = max(_MIN_RATE, 0 if config.allow_upsampling else sample_rate_hz)
        self._root = root
        self._prefix = f"{root}/"
        # Roots that `full_path` would change are left to it.
        self._plain_root = root is not None and (root.startswith("s3://") or _is_plain(self._prefix[:-1]))

    def __call__(self, line: str) -> Planned | None:
        """The planned cut, or None where the long way has to look."""
        if line.count("{") + line.count("[") > MAX_DEPTH or "\\ud" in line or "\\uD" in line:
            return None
        try:
            cut = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if type(cut) is not dict or not _CUT_KEYS.issuperset(cut) or cut.get("type") != "MonoCut":
            return None
        cut_id, start, duration = cut.get("id"), cut.get("start"), cut.get("duration")
        channel, recording = cut.get("channel"), cut.get("recording")
        if (
            type(cut_id) is not str
            or not cut_id
            or not _is_number(start)
            or not _is_number(duration)
            or not self._min_s <= duration <= self._max_s
            or not _is_channel(channel)
        ):
            return None
        recording_json = self._recording(recording, start, start + duration, channel)
        if recording_json is None:
            return None
        supervisions = cut.get("supervisions", [])
        if type(supervisions) is not list:
            return None
        written: list[str] = []
        for supervision in supervisions:
            supervision_json = _supervision(supervision, duration, channel)
            if supervision_json is None:
                return None
            written.append(supervision_json)
        text = (
            f'{{"id":{encode_basestring(cut_id)},"start":{start!r},"duration":{duration!r},"channel":{channel!r},'
            f'"supervisions":[{",".join(written)}],"recording":{recording_json},"type":"MonoCut"}}'
        )
        return Planned(cut_id, text, duration, None)

    def _recording(self, recording: Any, start: float, end: float, channel: int) -> str | None:
        """JSON of the cut's recording, if the cut lies inside it."""
        if type(recording) is not dict or not _RECORDING_KEYS.issuperset(recording):
            return None
        name, rate, samples = (
            recording.get("id"),
            recording.get("sampling_rate"),
            recording.get("num_samples"),
        )
        duration, sources = recording.get("duration"), recording.get("sources")
        if (
            type(name) is not str
            or not name
            or type(rate) is not int
            or not self._min_rate <= rate < _LARGE
            or type(samples) is not int
            or not 1 <= samples < _LARGE
            or not _is_number(duration)
            or abs(samples / rate - duration) > NUM_SAMPLES_TOLERANCE_S
            # As `clipped`, which leaves such a cut alone.
            or start <= -0.5 / rate
            or end >= samples / rate + 0.5 / rate
            or type(sources) is not list
            or len(sources) != 1
        ):
            return None
        source = sources[0]
        if type(source) is not dict or not _SOURCE_KEYS.issuperset(source):
            return None
        channels, path = source.get("channels"), source.get("source")
        if type(channels) is not list or not all(map(_is_channel, channels)):
            return None
        if channels.count(channel) != 1 or len(set(channels)) != len(channels):
            return None
        channel_ids = recording.get("channel_ids")
        if channel_ids is not None and (
            type(channel_ids) is not list or channel_ids != channels or not all(map(_is_channel, channel_ids))
        ):
            return None
        if type(path) is not str or source.get("type") != "file":
            return None
        path = self._relative(path)
        if path is None:
            return None
        numbers = ",".join(map(repr, channels))
        ids = numbers if channel_ids is not None else ",".join(map(repr, sorted(channels)))
        return (
            f'{{"id":{encode_basestring(name)},"sources":[{{"type":"file","channels":[{numbers}],'
            f'"source":{encode_basestring(path)}}}],"sampling_rate":{rate!r},"num_samples":{samples!r},'
            f'"duration":{duration!r},"channel_ids":[{ids}]}}'
        )

    def _relative(self, path: str) -> str | None:
        """The path as a plan keeps it: relative to the corpus' root where it lies under it."""
        if "#" in path or "\0" in path or "://" in path:
            return None
        if path.startswith("/"):
            if not _is_plain(path):
                return None
            under = self._root is not None and path.startswith(self._prefix)
            return path[len(self._prefix) :] if under else path
        # Whether "root/path" is plain, which begins with a plain root.
        plain = bool(path) and self._plain_root and not path.startswith("~") and _is_plain(f"/{path}")
        return path if plain else None


def _supervision(supervision: Any, cut_duration: float, cut_channel: int) -> str | None:
    """JSON of a supervision that lies inside its cut."""
    if type(supervision) is not dict or not _SUPERVISION_KEYS.issuperset(supervision):
        return None
    name, of, start = supervision.get("id"), supervision.get("recording_id"), supervision.get("start")
    duration, channel = supervision.get("duration"), supervision.get("channel", 0)
    if (
        type(name) is not str
        or not name
        or type(of) is not str
        or not _is_number(start)
        or not _is_number(duration)
        or duration < 0
        or type(channel) is not int
        or channel != cut_channel
        or start < -TEXT_TOLERANCE_S
        or start + duration > cut_duration + TEXT_TOLERANCE_S
    ):
        return None
    more = ""
    for key in ("text", "language", "speaker", "gender"):
        value = supervision.get(key)
        if value is not None:
            if type(value) is not str:
                return None
            more += f',"{key}":{encode_basestring(value)}'
    return (
        f'{{"id":{encode_basestring(name)},"recording_id":{encode_basestring(of)},"start":{start!r},'
        f'"duration":{duration!r},"channel":{channel!r}{more}}}'
    )


def _is_number(value: Any) -> TypeGuard[float]:
    kind = type(value)
    return (kind is float or kind is int) and -_LARGE < value < _LARGE


def _is_channel(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**31


def _is_plain(path: str) -> bool:
    """Whether `under_root` takes this full path as it is."""
    return "//" not in path and "/." not in path and not path.endswith("/")
