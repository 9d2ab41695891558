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

from lhotse import Recording
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from mvqkd.storage.location import open_location
from mvqkd.workers.corpus.files import CorpusError, open_binary, part_of, read_lines

_CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?")
_RECORDINGS = re.compile(r"recording\.(\d+)\.(tar|jsonl|jsonl\.gz)")


def parse_cut(line: str, where: str) -> Cut:
    """The cut of one manifest line. Raises `CorpusError`, naming `where`, for anything else."""
    try:
        cut = deserialize_item(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise CorpusError(f"{where}: not a Lhotse cut ({error}); write the manifest again") from error
    if not isinstance(cut, Cut):
        raise CorpusError(f"{where}: a {type(cut).__name__}, not a Lhotse cut; give a manifest of cuts")
    return cut


def read_shar(folder: str, options: Mapping[str, Any]) -> Iterator[Cut]:
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
        cuts_url, audio_url = location.full_url(cuts[number]), location.full_url(recordings[number])
        read = _tar_recordings if audio_url.endswith(".tar") else _listed_recordings
        audio = read(audio_url, options)
        for line_number, line in read_lines(cuts_url, options):
            cut = parse_cut(line, f"{cuts_url}:{line_number}")
            name, recording = next(audio, (None, None))
            if name != cut.id:
                raise CorpusError(
                    f"{cuts_url}:{line_number}: cut {cut.id!r} meets {name!r} in {audio_url}; "
                    "write the folder again"
                )
            cut.recording = recording
            yield cut


def _tar_recordings(url: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Recording | None]]:
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
                recording = Recording.from_dict(json.loads(content.read()))
                part = part_of(url, data.offset_data, data.offset_data + data.size)
                recording.sources = [AudioSource("url", recording.channel_ids, part)]
                yield name, recording
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
    except (tarfile.TarError, OSError, EOFError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorpusError(f"{url}: a damaged Shar file ({error}); write or copy the folder again") from error


def _listed_recordings(url: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Recording | None]]:
    """Cut ids and recordings of a Shar folder that refers to audio elsewhere."""
    for number, line in read_lines(url, options):
        try:
            item = json.loads(line)
            yield item["cut_id"], Recording.from_dict(item["recording"]) if "recording" in item else None
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"{url}:{number}: not a Shar recording ({error}); write the folder again"
            ) from error
