"""What a cut is to this program: which audio it is, who speaks, what is said, and its line of JSON."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhotse import MonoCut


class UtteranceError(ValueError):
    """One utterance cannot be used; the message names the cut, what is wrong (a file, a field) and the remedy."""

    def __init__(self, cut_id: str, problem: str) -> None:
        super().__init__(f"{cut_id}: {problem}")
        self.cut_id, self.problem = cut_id, problem

    def __reduce__(self) -> tuple[type["UtteranceError"], tuple[str, str]]:
        return type(self), (self.cut_id, self.problem)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An utterance that cannot be used, with the reason and the remedy."""

    cut_id: str
    reason: str


def cut_to_json(cut: "MonoCut") -> str:
    """One line of JSON, the same for equal cuts."""
    return json.dumps(cut.to_dict(), ensure_ascii=False, separators=(",", ":"))


def cut_from_json(line: str) -> "MonoCut":
    """The cut of one line."""
    # Here, because what only counts shards need not wait for lhotse and torch.
    from lhotse import MonoCut
    from lhotse.serialization import deserialize_item

    cut = deserialize_item(json.loads(line))
    assert isinstance(cut, MonoCut), type(cut)
    return cut


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


def speaker_of(cut: "MonoCut") -> str | None:
    """The speaker of the cut's first supervision that names one."""
    return next((s.speaker for s in cut.supervisions if s.speaker), None)


def text_of(cut: "MonoCut") -> str | None:
    """The transcripts of the cut's supervisions in time order, or None when it has none."""
    texts = [s.text for s in sorted(cut.supervisions, key=lambda s: s.start) if s.text is not None]
    return " ".join(texts) if texts else None
