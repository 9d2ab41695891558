"""Lines of Lhotse cut manifests: JSON, then checks of its fields, then Lhotse."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lhotse import Recording
from lhotse.cut import Cut, MonoCut, MultiCut

from mvqkd.workers.corpus.blocks import read_blocks
from mvqkd.workers.corpus.fields import check_cut, check_recording, check_text
from mvqkd.workers.corpus.refusals import BadLine, FieldError, Item, shown, without_bad_lines
from mvqkd.workers.cuts import Refused, cut_from_json, cut_to_json

CUT_TYPES = ("MonoCut", "Cut", "MultiCut")  # "Cut" is what Lhotse called a MonoCut before 0.8
OTHER_CUT_TYPES = ("MixedCut", "PaddingCut")
_WRITE_AGAIN = "write the manifest again"


def read_manifest(
    path: str, options: Mapping[str, Any], *, recordings: bool = False
) -> Iterator[Cut | Refused]:
    """The cuts of a manifest in order, and a refusal for each line that holds none that can be used.

    Args:
        path: of the file, local or `s3://`.
        options: of the storage section.
        recordings: take recordings too, each as a cut of all of it.

    Raises:
        CorpusError: the file is missing or damaged, or most of its first lines are no cuts.
    """
    lines = (
        cut_of_line(line, f"{path}:{number}", recordings=recordings)
        for block in read_blocks(path, options)
        for number, line in block.lines()
    )
    return only_cuts(lines)


def only_cuts(lines: Iterator[Item | BadLine]) -> Iterator[Item | Refused]:
    """What the lines of a manifest hold, see `without_bad_lines`."""
    return without_bad_lines(lines, wanted="cuts", remedy=f"give a manifest of cuts, or {_WRITE_AGAIN}")


def cut_of_line(line: str, where: str, *, recordings: bool = False) -> Cut | Refused | BadLine:
    """The cut of one line of a manifest; `recordings` as of `read_manifest`."""
    data = object_of_line(line, where)
    if recordings and isinstance(data, dict) and "type" not in data and "sources" in data:
        data = _cut_of_recording(data, where)
    return cut_of_object(data, where) if isinstance(data, dict) else data


def object_of_line(line: str, where: str) -> dict[str, Any] | Refused | BadLine:
    """The JSON object of one line, checked for what would make its copy in a plan or a table unreadable."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadLine(where=where, problem=f"not a Lhotse cut ({error})")
    if not isinstance(data, dict):
        return BadLine(where=where, problem=f"not a Lhotse cut ({shown(data)})")
    try:
        check_text(line, data)
    except FieldError as error:
        return _refused(data, where, str(error))
    return data


def cut_of_object(data: dict[str, Any], where: str) -> Cut | Refused | BadLine:
    """The cut of a JSON object, which is used up."""
    kind = data.get("type")
    if kind in OTHER_CUT_TYPES:
        return _refused(
            data,
            where,
            f"is a {kind}; only plain cuts of one recording can be used: write mixed or padded audio to files first",
        )
    if kind not in CUT_TYPES:
        found = "Recording" if "sources" in data else "SupervisionSegment" if "recording_id" in data else ""
        problem = f"a {found}, not a Lhotse cut" if found else f"not a Lhotse cut (type {shown(kind)})"
        if found == "Recording":
            problem += " (with corpus.window_s set, recordings are taken too)"
        return BadLine(where=where, problem=problem)
    missing = [name for name in ("id", "start", "duration") if name not in data]
    if missing:
        return BadLine(where=where, problem=f"not a Lhotse cut (no {', '.join(missing)})")
    try:
        check_cut(data)
    except FieldError as error:
        return _refused(data, where, str(error))
    return _deserialized(data, where)


def _cut_of_recording(recording: dict[str, Any], where: str) -> dict[str, Any] | Refused:
    """A cut of a whole recording, as JSON."""
    try:
        check_recording(recording)
    except FieldError as error:
        return _refused(recording, where, str(error))
    channels = sorted(channel for source in recording["sources"] for channel in source["channels"])
    one = len(channels) == 1
    return {
        "id": recording["id"],
        "start": 0.0,
        "duration": recording["duration"],
        "channel": channels[0] if one else channels,
        "recording": recording,
        "type": "MonoCut" if one else "MultiCut",
    }


def _deserialized(data: dict[str, Any], where: str) -> Cut | Refused:
    cut_id, custom = data["id"], data.get("custom")
    if data.get("recording", 0) is None:
        del data["recording"]
    transforms = json.dumps(data.get("recording", {}).get("transforms", []))
    kind = MultiCut if data.pop("type") == "MultiCut" else MonoCut
    try:
        cut = kind.from_dict(data)
        if transforms != "[]":
            _check_transforms(json.loads(transforms), cut.recording)
        if custom or data.get("features") is not None:
            # These may hold manifests, which Lhotse does not always read back as it writes them.
            cut_from_json(cut_to_json(cut))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # Lhotse's answer to a bad field may be any error
        return Refused(
            cut_id=cut_id,
            reason=f"{where}: not a cut that Lhotse reads ({type(error).__name__}: {error}); {_WRITE_AGAIN}",
        )
    return cut


def _check_transforms(given: list[dict[str, Any]], recording: Recording) -> None:
    """Lhotse drops all transforms of a recording, and says nothing, when one of them lacks a field."""

    def names(transforms: list[dict[str, Any]]) -> list[Any]:
        found: list[Any] = []
        for transform in transforms:
            response = transform["kwargs"].get("rir")
            inner = response.get("recording", response) if isinstance(response, dict) else {}
            found.append((transform["name"], names(inner.get("transforms") or [])))
        return found

    if names(given) != names(recording.to_dict().get("transforms", [])):
        raise ValueError("a field of one of the recording's transforms is missing")


def _refused(data: Mapping[str, Any], where: str, problem: str) -> Refused:
    cut_id, duration_s = data.get("id"), data.get("duration")
    return Refused(
        cut_id=cut_id if isinstance(cut_id, str) and cut_id else where if cut_id is None else shown(cut_id),
        reason=f"{where}: {problem}",
        duration_s=plain_duration(duration_s),
    )


def plain_duration(value: Any) -> float | None:
    """The duration that a refused cut claims, where it is one."""
    return float(value) if type(value) in (int, float) and 0 <= value < 1e15 else None
