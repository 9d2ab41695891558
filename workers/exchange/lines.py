"""Lines of cut manifests as plain JSON: which audio each is of, and its codes put in, all else left as it stands.

Lhotse's objects are not built: a manifest of ten million cuts is read and written line by line, and what Lhotse or this
program does not know (features, custom fields) comes out as it went in.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.corpus.blocks import read_blocks
from mvqkd.workers.corpus.fields import is_number
from mvqkd.workers.corpus.files import CorpusError, full_path, read_lines
from mvqkd.workers.corpus.manifest import CUT_TYPES, OTHER_CUT_TYPES, object_of_line
from mvqkd.workers.corpus.refusals import BadLine, without_bad_lines
from mvqkd.workers.cuts import Refused, base_recording

SHAR_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?")


class AudioKey(NamedTuple):
    """Which audio a cut is of, whatever it is called.

    Attributes:
        recording: id of the recording, without the suffix that Lhotse gives copies of another speed.
        channel: of it.
        start, duration: seconds in the recording, after any change of speed.
        speed: factor of it, 1.0 when there is none.
    """

    recording: str
    channel: int
    start: float
    duration: float
    speed: float

    def __str__(self) -> str:
        """For messages."""
        end = f"{self.start:g} s, {self.duration:g} s long, channel {self.channel}"
        return end if self.speed == 1.0 else f"{end}, at speed {self.speed:g}"


class NoAudioKeyError(ValueError):
    """Which audio a cut is of cannot be told; the message says why."""


@dataclass(frozen=True, kw_only=True)
class CutLine:
    """A cut of a manifest as JSON, with the place where it stands and the number of its Shar shard, if it is of one."""

    data: dict[str, Any]
    source: str
    line: int
    shard: str | None = None

    @property
    def cut_id(self) -> str:
        """Id of the cut."""
        return str(self.data.get("id"))


class UnusableLine(NamedTuple):
    """A line of a manifest that holds no cut which can be used, and why."""

    source: str
    refused: Refused


def key_of(cut: Mapping[str, Any]) -> AudioKey:
    """Which audio a cut is of, from its line.

    Raises:
        NoAudioKeyError: the cut is of several channels or recordings, or a field is missing or wrong.
    """
    kind, recording = cut.get("type"), cut.get("recording")
    if not isinstance(cut.get("id"), str) or not cut["id"]:
        raise NoAudioKeyError(f"has the id {cut.get('id')!r}; correct the manifest")
    if kind not in CUT_TYPES:
        raise NoAudioKeyError(
            f"is a {kind}; codes are of plain cuts of one recording: mix and pad afterwards"
        )
    if not isinstance(recording, dict) or not isinstance(recording.get("id"), str):
        raise NoAudioKeyError(
            "has no recording, so nobody knows which audio it is of; write the manifest with its recordings"
        )
    channel = cut.get("channel")
    if isinstance(channel, list) and len(channel) == 1:
        channel = channel[0]
    if type(channel) is not int:
        raise NoAudioKeyError(f"has the channel {channel!r}; codes are of one channel: split the cut")
    for name in ("start", "duration"):
        if not is_number(cut.get(name)):
            raise NoAudioKeyError(f"{name} is {cut.get(name)!r}, not a finite number; correct the manifest")
    speed = _speed_of(recording)
    name = base_recording(recording["id"], speed)
    return AudioKey(name, channel, float(cut["start"]), float(cut["duration"]), speed)


def _speed_of(recording: Mapping[str, Any]) -> float:
    speed = 1.0
    for transform in recording.get("transforms") or ():
        if isinstance(transform, dict) and transform.get("name") == "Speed":
            factor: Any = (transform.get("kwargs") or {}).get("factor")
            if not is_number(factor) or factor <= 0:
                raise NoAudioKeyError(f"has the speed {factor!r}; correct the manifest")
            speed *= factor
    return speed


def with_array(
    cut: dict[str, Any], field: str, *, array: Mapping[str, Any], frame_shift_s: float
) -> dict[str, Any]:
    """The cut with a `TemporalArray` of Lhotse in a custom field, beside the other custom fields.

    Its start is the cut's: Lhotse takes the difference of the two for frames to skip.
    """
    manifest = {
        "array": dict(array),
        "temporal_dim": 0,
        "frame_shift": frame_shift_s,
        "start": cut["start"],
    }
    return {**cut, "custom": {**(cut.get("custom") or {}), field: manifest}}


def read_manifest_lines(url: str, options: Mapping[str, Any]) -> Iterator[CutLine | UnusableLine]:
    """The cuts of a manifest, or of a Shar folder, in order.

    Raises:
        CorpusError: it is missing or damaged, or holds no cuts.
        StorageError: the store broke off.
    """
    if url.endswith((".jsonl", ".jsonl.gz")):
        lines = ((n, text) for block in read_blocks(url, options) for n, text in block.lines())
        yield from _cut_lines(url, lines, shard=None)
        return
    for number, file in shar_cuts(url, options).items():
        yield from _cut_lines(file, read_lines(file, options), shard=number)


def shar_cuts(folder: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The files of cuts of a Shar folder by their numbers, in order. Raises `CorpusError` when there are none."""
    location = open_location(folder, options=options if folder.startswith("s3://") else {})
    found = {match[1]: name for name in location.list() if (match := SHAR_CUTS.fullmatch(name))}
    if not found:
        raise CorpusError(
            f"{folder}: no cuts: give a manifest (.jsonl, .jsonl.gz) or a Shar folder with cuts.000000.jsonl.gz"
        )
    return {number: location.full_url(found[number]) for number in sorted(found)}


def read_own_lines(table: IndexTable, shards: Iterator[str]) -> Iterator[CutLine | UnusableLine]:
    """The cuts that a table was made of, shard by shard."""
    for name in shards:
        where = table.location.full_url(table.shard_path(name))
        column = table.read_shard(name, columns=["cut"])["cut"]
        yield from _cut_lines(where, enumerate(column.to_pylist(), start=1), shard=None)


def with_root(cut: dict[str, Any], root: str | None) -> dict[str, Any]:
    """The cut with the paths of its audio under the root where they are relative."""
    recording = cut.get("recording")
    if root is None or not isinstance(recording, dict):
        return cut

    def full(source: Any) -> Any:
        path = source.get("source") if isinstance(source, dict) and source.get("type") == "file" else None
        if not isinstance(path, str) or "://" in path or path.startswith(("/", "~")):
            return source
        joined = f"{root.rstrip('/')}/{path}"
        return {**source, "type": "url" if "://" in joined else "file", "source": full_path(joined)}

    sources = [full(source) for source in recording.get("sources") or ()]
    return {**cut, "recording": {**recording, "sources": sources}}


def fits_tar(cut_id: str) -> bool:
    """Whether Lhotse finds a cut again by the name of its file in a Shar tar."""
    path = PurePosixPath(f"{cut_id}.npy")
    return str(path.parent / path.stem) == cut_id


def _cut_lines(
    source: str, lines: Iterator[tuple[int, str]], *, shard: str | None
) -> Iterator[CutLine | UnusableLine]:
    def items() -> Iterator[CutLine | Refused | BadLine]:
        for number, text in lines:
            where = f"{source}:{number}"
            data = object_of_line(text, where)
            if isinstance(data, dict):
                if data.get("type") not in (*CUT_TYPES, "MultiCut", *OTHER_CUT_TYPES):
                    yield BadLine(where=where, problem="not a Lhotse cut")
                    continue
                yield CutLine(data=data, source=source, line=number, shard=shard)
            else:
                yield data

    checked: Iterator[CutLine | Refused] = without_bad_lines(
        items(), wanted="cuts", remedy="give a manifest of cuts"
    )
    for item in checked:
        if isinstance(item, Refused):
            yield UnusableLine(source, item)
        else:
            yield item
