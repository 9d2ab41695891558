"""What must stand in the fields of a cut before Lhotse is asked: plain checks of the parsed JSON.

Lhotse takes nearly anything for a number or a text, and fails, or does not, where the cut is used, far from the
manifest. Fields that only Lhotse or nobody reads (language, alignment, custom) are left to it.
"""

from collections.abc import Mapping
from typing import Any

from mvqkd.workers.corpus.refusals import FieldError

NUM_SAMPLES_TOLERANCE_S = 0.025
"""Between a recording's duration and its number of samples: manifests round durations."""

MAX_DEPTH = 50
"""Of nested JSON in a line."""
_SOURCE_TYPES = ("file", "url", "command")


def check_cut(data: Mapping[str, Any]) -> None:
    """Raise `FieldError` for the first field of a MonoCut or MultiCut that cannot be used."""
    _text(data, "id")
    _number(data, "start")
    if _number(data, "duration") < 0:
        raise FieldError("duration", data["duration"], "a number of seconds from 0 on")
    channel = data.get("channel")
    if data["type"] == "MultiCut" and type(channel) is list:
        _channels(channel, "channel")
    elif not _is_channel(channel):
        raise FieldError("channel", channel, "the number of a channel")
    supervisions = data.get("supervisions", [])
    if type(supervisions) is not list:
        raise FieldError("supervisions", supervisions, "a list")
    for number, supervision in enumerate(supervisions):
        _check_supervision(supervision, f"supervisions[{number}]")
    if data.get("recording") is not None:
        check_recording(data["recording"])


def check_recording(recording: Any) -> None:
    """Raise `FieldError` for the first field of a recording that cannot be used."""
    if type(recording) is not dict:
        raise FieldError("recording", recording, "a recording")
    _text(recording, "id", "recording.")
    rate = _number(recording, "sampling_rate", "recording.")
    if rate < 1 or rate != int(rate):
        raise FieldError(
            "recording.sampling_rate", recording["sampling_rate"], "a number of samples per second"
        )
    num_samples = _number(recording, "num_samples", "recording.")
    if num_samples < 1 or num_samples != int(num_samples):
        raise FieldError("recording.num_samples", recording["num_samples"], "a number of samples")
    duration_s = _number(recording, "duration", "recording.")
    if abs(num_samples / rate - duration_s) > NUM_SAMPLES_TOLERANCE_S:
        wanted = (
            f"the {num_samples / rate:.3f} s of its num_samples {shown_number(num_samples)} at {rate:g} Hz"
        )
        raise FieldError("recording.duration", recording["duration"], wanted)
    sources = recording.get("sources")
    if type(sources) is not list or not sources:
        raise FieldError("recording.sources", sources, "a list of at least one source of audio")
    for number, source in enumerate(sources):
        _check_source(source, f"recording.sources[{number}]")
    if recording.get("channel_ids") is not None:
        _channels(recording["channel_ids"], "recording.channel_ids")
    transforms = recording.get("transforms", [])
    if type(transforms) is not list:
        raise FieldError("recording.transforms", transforms, "a list")
    for number, transform in enumerate(transforms):
        known = type(transform) is dict and type(transform.get("name")) is str
        if not known or type(transform.get("kwargs")) is not dict:
            raise FieldError(f"recording.transforms[{number}]", transform, "a transform with name and kwargs")


def check_text(line: str, data: Any) -> None:
    """Raise `FieldError` for a line of JSON whose copy in a plan or a table could not be written or read.

    Args:
        line: as it stands in a UTF-8 file.
        data: what JSON makes of it.
    """
    if line.count("{") + line.count("[") > MAX_DEPTH:
        _check_nesting(data)
    # Without such an escape no character of a UTF-8 file is half of a surrogate pair.
    if "\\ud" in line or "\\uD" in line:
        _check_surrogates(data)


def is_number(value: Any) -> bool:
    """Whether this is a finite number that a double holds; neither a bool nor NaN."""
    return type(value) in (int, float) and -1e15 < value < 1e15


def shown_number(value: float) -> str:
    """A number of samples, without a fraction."""
    return f"{value:.0f}"


def _check_supervision(supervision: Any, field: str) -> None:
    if type(supervision) is not dict:
        raise FieldError(field, supervision, "a supervision")
    prefix = f"{field}."
    _text(supervision, "id", prefix)
    # Lhotse reads a null here, leaves it out when it writes, and cannot read that back.
    if type(supervision.get("recording_id")) is not str:
        raise FieldError(f"{field}.recording_id", supervision.get("recording_id"), "text")
    _number(supervision, "start", prefix)
    if _number(supervision, "duration", prefix) < 0:
        raise FieldError(f"{field}.duration", supervision["duration"], "a number of seconds from 0 on")
    for name in ("text", "speaker"):
        value = supervision.get(name)
        if value is not None and type(value) is not str:
            raise FieldError(f"{field}.{name}", value, "text")
    channel = supervision.get("channel", 0)
    if type(channel) is list:
        _channels(channel, f"{field}.channel")
    elif not _is_channel(channel):
        raise FieldError(f"{field}.channel", channel, "the number of a channel")


def _check_source(source: Any, field: str) -> None:
    if type(source) is not dict:
        raise FieldError(field, source, "a source of audio")
    kind = source.get("type")
    if kind not in _SOURCE_TYPES:
        remedy = ' (of a Shar folder: set corpus.format to "shar")' if kind == "shar" else ""
        raise FieldError(f"{field}.type", kind, f"one of {', '.join(_SOURCE_TYPES)}{remedy}")
    _text(source, "source", f"{field}.")
    if "\0" in source["source"]:
        raise FieldError(f"{field}.source", source["source"], "a path without the character NUL")
    _channels(source.get("channels"), f"{field}.channels")


def _text(data: Mapping[str, Any], name: str, prefix: str = "") -> None:
    value = data.get(name)
    if type(value) is not str or not value:
        raise FieldError(f"{prefix}{name}", value, "text")


def _number(data: Mapping[str, Any], name: str, prefix: str = "") -> float:
    value = data.get(name)
    if not is_number(value):
        raise FieldError(f"{prefix}{name}", value, "a finite number")
    return value  # type: ignore[return-value]


def _is_channel(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _channels(value: Any, field: str) -> None:
    if type(value) is not list or not value or not all(map(_is_channel, value)):
        raise FieldError(field, value, "a list of the numbers of channels")
    if len(set(value)) != len(value):
        raise FieldError(field, value, "a list of different channels")


def _check_nesting(data: Any) -> None:
    """Raise `FieldError` where JSON is nested so deeply that others, with less room on the stack, fail on it."""
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise FieldError("the cut", data.get("id"), f"nested at most {MAX_DEPTH} levels deep")
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]


def _check_surrogates(value: Any, field: str = "") -> None:
    """Raise `FieldError` for text that holds half of a surrogate pair: no file can hold it as UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FieldError(field, value, "text: half of a surrogate pair is no character") from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = f"{field}.{key}" if field else key
            _check_surrogates(key, f"the name of {name.encode('ascii', 'backslashreplace').decode()}")
            _check_surrogates(inner, name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_surrogates(inner, f"{field}[{number}]")
