"""Lhotse Shar folders, local or in S3, read without loading their audio.

Lhotse's own reader puts the audio of every cut into memory, and with it into every manifest written from
there. Here a cut refers to its bytes inside the tar file instead (`workers.corpus.files.part_of`), so a plan of a
Shar corpus is as small as any other, and one utterance is one range request.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from lhotse.cut import Cut

from mvqkd.storage.location import open_location
from mvqkd.workers.corpus.fields import check_recording, check_text
from mvqkd.workers.corpus.files import CorpusError, open_binary, part_of, read_lines
from mvqkd.workers.corpus.manifest import cut_of_object, object_of_line
from mvqkd.workers.corpus.refusals import BadLine, FieldError, without_bad_lines
from mvqkd.workers.cuts import Refused

_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?")
_RECORDINGS = re.compile(r"recording\.(\d+)\.(tar|jsonl|jsonl\.gz)")

Entry = tuple[str, dict[str, Any] | Refused | None]
"""A cut's id, and its recording as JSON, or None where it has no audio, or what is wrong with it."""


def read_shar(folder: str, options: Mapping[str, Any]) -> Iterator[Cut | Refused]:
    """The cuts of a Shar folder in order; those without audio have no recording.

    Raises:
        CorpusError: no such folder, a file of it is missing or damaged, or cuts and audio do not belong
            together.
    """
    location = open_location(folder, options=options if folder.startswith("s3://") else {})
    names = list(location.list())
    cuts = {match[1]: name for name in names if (match := _CUTS.fullmatch(name))}
    recordings = {match[1]: name for name in names if (match := _RECORDINGS.fullmatch(name))}
    if not cuts:
        raise CorpusError(f"{folder}: no such Shar folder (no cuts.000000.jsonl.gz in it); see corpus.root")
    if set(cuts) != set(recordings):
        odd = sorted(set(cuts) ^ set(recordings))
        raise CorpusError(
            f"{folder}: shards {', '.join(odd)} lack their cuts.* or recording.* file; copy it again"
        )
    for number in sorted(cuts):
        lines = _read_shard(location.full_url(cuts[number]), location.full_url(recordings[number]), options)
        yield from without_bad_lines(lines, wanted="cuts", remedy="write the folder again")


def _read_shard(
    cuts_url: str, audio_url: str, options: Mapping[str, Any]
) -> Iterator[Cut | Refused | BadLine]:
    """Cuts and audio of a shard stand in the same order; a cut that is refused still takes its audio along."""
    read = _tar_recordings if audio_url.endswith(".tar") else _listed_recordings
    audio = read(audio_url, options)
    for number, line in read_lines(cuts_url, options):
        where = f"{cuts_url}:{number}"
        data = object_of_line(line, where)
        name, recording = next(audio, (None, None))
        if isinstance(data, dict) and isinstance(data.get("id"), str) and name != data["id"]:
            raise CorpusError(
                f"{where}: cut {data['id']!r} meets {name!r} in {audio_url}; write the folder again"
            )
        if not isinstance(data, dict) or isinstance(recording, Refused):
            yield data if not isinstance(data, dict) else recording
            continue
        data["recording"] = recording
        yield cut_of_object(data, where)
    for name, _ in audio:
        yield Refused(
            cut_id=name,
            reason=f"{audio_url}: has its audio, but {cuts_url} ends before; write the folder again",
        )


def _tar_recordings(url: str, options: Mapping[str, Any]) -> Iterator[Entry]:
    """Cut ids and recordings of a tar file that holds audio and its manifest in turn."""
    try:
        with open_binary(url, options) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (data := tar.next()) is not None:
                meta = tar.next()
                if meta is None:
                    raise CorpusError(
                        f"{url}: ends after {data.name!r} without its manifest; write the folder again"
                    )
                path = PurePosixPath(data.name)
                name = str(path.parent / path.stem)
                if path.suffix == ".nodata":
                    yield name, None
                    continue
                content = tar.extractfile(meta)
                assert content is not None, "a manifest in a tar file is a regular file"
                part = part_of(url, data.offset_data, data.offset_data + data.size)
                yield name, _recording_in_tar(name, content.read(), part, f"{url}: {meta.name}")
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CorpusError(f"{url}: a damaged Shar file ({error}); write or copy the folder again") from error


def _recording_in_tar(name: str, content: bytes, part: str, where: str) -> dict[str, Any] | Refused:
    """The recording of a cut, with its bytes in the tar file as its one source."""
    problem = "not a recording"
    try:
        data = object_of_line(content.decode(), where)
        if isinstance(data, Refused):
            return Refused(cut_id=name, reason=data.reason)
        if isinstance(data, dict):
            channels = data.get("channel_ids") or sorted(c for s in data["sources"] for c in s["channels"])
            data["sources"] = [{"type": "url", "channels": channels, "source": part}]
            check_recording(data)
            return data
    except (UnicodeDecodeError, KeyError, TypeError, AttributeError, FieldError) as error:
        problem = f"not a recording that can be used ({error})"
    return Refused(cut_id=name, reason=f"{where}: {problem}; write the folder again")


def _listed_recordings(url: str, options: Mapping[str, Any]) -> Iterator[Entry]:
    """Cut ids and recordings of a Shar folder that refers to audio elsewhere."""
    for number, line in read_lines(url, options):
        try:
            item = json.loads(line)
            name, recording = item["cut_id"], item.get("recording")
            if not isinstance(name, str):
                raise TypeError(f"cut_id is {name!r}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorpusError(
                f"{url}:{number}: not a Shar recording ({error}); write the folder again"
            ) from error
        try:
            check_text(line, item)
        except FieldError as error:
            recording = Refused(cut_id=name, reason=f"{url}:{number}: {error}")
        yield name, recording
