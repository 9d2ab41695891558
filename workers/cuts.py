"""What a cut is to this program: which audio it is, who speaks, what is said, and its line of JSON."""

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lhotse import MonoCut

TEXT_TOLERANCE_S = 0.1
"""How far a supervision may reach beyond its cut: annotators' times are no more exact."""


_SPEED_SUFFIX = re.compile(r"_sp[0-9.]+$")


class UtteranceError(ValueError):
    """One utterance cannot be used; the message names the cut, what is wrong (a file, a field) and the remedy."""

    def __init__(self, cut_id: str, problem: str) -> None:
        super().__init__(f"{cut_id}: {problem}")
        self.cut_id, self.problem = cut_id, problem

    def __reduce__(self) -> tuple[type["UtteranceError"], tuple[str, str]]:
        return type(self), (self.cut_id, self.problem)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An utterance that cannot be used, with the reason and the remedy; `duration_s` where it is known."""

    cut_id: str
    reason: str
    duration_s: float | None = None


class Planned(NamedTuple):
    """A cut as a plan keeps it: its id, its line of JSON, how long it lasts, and why its text is not used, if so."""

    cut_id: str
    line: str
    duration_s: float
    text_problem: str | None


def planned(cut: "MonoCut", *, root: str | None) -> Planned:
    """What a plan keeps of a cut; `root` as of `cut_to_json`."""
    return Planned(cut.id, cut_to_json(cut, root=root), cut.duration, text_problem(cut))


def cut_to_json(cut: "MonoCut", *, root: str | None = None) -> str:
    """One line of JSON, the same for equal cuts: that of `cut.to_dict()`.

    Args:
        cut: any cut of one recording.
        root: sources under this folder or prefix (no `/` at its end) are written relative to it, so that the
            line does not change when the corpus moves.
    """
    data = _plain(cut)
    if root is not None and "recording" in data:
        _make_relative(data["recording"], f"{root}/")
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def cut_from_json(line: str) -> "MonoCut":
    """The cut of one line."""
    # Here, because what only counts shards need not wait for lhotse and torch.
    from lhotse import MonoCut
    from lhotse.serialization import deserialize_item

    cut = deserialize_item(json.loads(line))
    assert isinstance(cut, MonoCut), type(cut)
    return cut


def clipped(cut: "MonoCut") -> "MonoCut":
    """The cut without what reaches beyond the samples of its recording, which Lhotse would mirror or move.

    Less than half a sample is left alone: it is rounding and changes nothing.
    """
    recording = cut.recording
    tolerance_s = 0.5 / recording.sampling_rate
    end_s = recording.num_samples / recording.sampling_rate
    cut_end_s = cut.start + cut.duration
    if cut.start > -tolerance_s and cut_end_s < end_s + tolerance_s:
        return cut
    from lhotse.utils import fastcopy

    before_s = max(0.0, -cut.start)
    start, end = cut.start + before_s, min(cut_end_s, end_s)
    supervisions = cut.supervisions
    if before_s:
        # Their times count from the start of the cut.
        supervisions = [fastcopy(s, start=round(s.start - before_s, 8)) for s in supervisions]
    return fastcopy(cut, start=start, duration=round(end - start, 8), supervisions=supervisions)


def identity(cut: "MonoCut", num_samples: int) -> dict[str, Any]:
    """The key columns of a row: which audio this is, whatever its cut is called."""
    return {
        "recording_id": cut.recording.id,
        "channel": cut.channel,
        "start": cut.start,
        "duration": cut.duration,
        "speed": speed_of(cut),
        "num_samples": num_samples,
    }


def speed_of(cut: "MonoCut") -> float:
    """Speed perturbation factor of the cut's recording; 1.0 when there is none."""
    speed = 1.0
    for transform in cut.recording.transforms or []:
        known = transform if isinstance(transform, dict) else transform.to_dict()
        if known.get("name") == "Speed":
            speed *= known["kwargs"]["factor"]
    return speed


def unperturbed_id(name: str, cut: "MonoCut") -> str:
    """The id that this one, of the cut or of its recording, had before the cut was perturbed in speed; itself when it
    was not. Copies of an utterance are not two utterances where data is split."""
    for transform in reversed(cut.recording.transforms or []):
        known = transform if isinstance(transform, dict) else transform.to_dict()
        if known.get("name") == "Speed":
            before, _, after = name.rpartition(f"_sp{known['kwargs']['factor']}")
            name = before + after
    return name


def base_recording(recording_id: str, speed: float) -> str:
    """The id of the recording that a copy of another speed was made of: Lhotse adds `_sp0.9` to it, or nothing."""
    while speed != 1.0 and (match := _SPEED_SUFFIX.search(recording_id)):
        recording_id = recording_id[: match.start()]
    return recording_id


def speaker_of(cut: "MonoCut") -> str | None:
    """The speaker of the cut's first supervision that names one."""
    return next((s.speaker for s in _own_supervisions(cut) if s.speaker), None)


def text_of(cut: "MonoCut") -> str | None:
    """What is said in the cut: the texts of its supervisions in time order, overlapping ones by their start.

    None when it has no text, or when `text_problem` says that its texts are not of this cut alone.
    """
    if text_problem(cut) is not None:
        return None
    spoken = sorted((s for s in _own_supervisions(cut) if s.text is not None), key=lambda s: s.start)
    return " ".join(s.text for s in spoken) if spoken else None


def has_text(cut: "MonoCut") -> bool:
    """Whether anything is known to be said in the cut, on any channel."""
    return any(s.text and not s.text.isspace() for s in cut.supervisions)


def text_problem(cut: "MonoCut") -> str | None:
    """Why the texts of the cut's supervisions are not what is said in it; None where they are, or it has none.

    A supervision with a text has to lie inside the cut, to a tenth of a second: which part of a text is said in
    a part of its time, nobody knows.
    """
    own: list[Any] = []
    others: list[Any] = []
    for supervision in cut.supervisions:
        if supervision.text and not supervision.text.isspace():
            (own if _is_of_channel(supervision, cut.channel) else others).append(supervision)
    for s in own:
        end_s = s.start + s.duration
        if s.start < -TEXT_TOLERANCE_S or end_s > cut.duration + TEXT_TOLERANCE_S:
            return (
                f"supervision {s.id!r} lasts from {s.start:.2f} s to {end_s:.2f} s of a cut of {cut.duration:.2f} s; "
                "cut at the ends of supervisions (lhotse cut trim-to-supervisions) to keep the text"
            )
    if others and not own:
        return (
            f"supervision {others[0].id!r} is of channel {others[0].channel}, the cut of channel {cut.channel}; "
            "give both the same channel to keep the text"
        )
    return None


def _own_supervisions(cut: "MonoCut") -> list[Any]:
    """Those of the cut's channel: Lhotse attaches no others, but a manifest may hold what it likes."""
    return [s for s in cut.supervisions if _is_of_channel(s, cut.channel)]


def _is_of_channel(supervision: Any, channel: int) -> bool:
    have = supervision.channel
    return channel in have if isinstance(have, list | tuple) else have == channel


_ATOMS = frozenset((str, int, float, bool, type(None)))


def _plain(value: Any) -> Any:
    """As Lhotse's `to_dict`, which copies deeply and takes four times as long."""
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    if kind is list or kind is tuple:
        return [inner if type(inner) in _ATOMS else _plain(inner) for inner in value]
    if kind is dict:
        return {key: _plain(inner) for key, inner in value.items()}
    names = _fields_of(kind)
    if names is None:
        # Tuples with names (alignments) are written as tuples; of the rest, JSON decides.
        return list(value) if isinstance(value, tuple) else value
    fields = vars(value)
    data: dict[str, Any] = {}
    for name in names:
        inner = fields[name]
        if inner is not None:
            if type(inner) not in _ATOMS:
                inner = _transforms(inner) if name == "transforms" else _plain(inner)
            data[name] = inner
    if kind.__name__ in ("MonoCut", "MultiCut"):
        data["type"] = kind.__name__
    return data


@cache
def _fields_of(kind: type) -> tuple[str, ...] | None:
    return tuple(kind.__dataclass_fields__) if hasattr(kind, "__dataclass_fields__") else None


def _transforms(transforms: list[Any]) -> list[Any]:
    return [t if isinstance(t, dict) else t.to_dict() for t in transforms]


def _make_relative(recording: dict[str, Any], prefix: str) -> None:
    for source in recording["sources"]:
        path = source["source"]
        if source["type"] in ("file", "url") and path.startswith(prefix):
            source["source"] = path[len(prefix) :]
            # A file is a file, in a bucket or in a folder; only a part of one is always fetched.
            if "#bytes=" not in path:
                source["type"] = "file"
    for transform in recording.get("transforms", ()):
        response = transform["kwargs"].get("rir")
        # An impulse response is a recording, or a cut of one.
        if isinstance(response, dict):
            response = response.get("recording", response)
            if "sources" in response:
                _make_relative(response, prefix)
