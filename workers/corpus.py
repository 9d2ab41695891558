"""The corpus as a lazy stream of Lhotse cuts, each either usable or refused with a reason.

Nothing here holds more than one cut at a time, so ten million of them cost no memory.
"""

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

import fsspec
import soundfile
from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.shar.readers.lazy import LazySharIterator
from pydantic import Field, model_validator

from workers.settings import Section

AUDIO_EXTENSIONS = (".flac", ".wav", ".ogg", ".mp3", ".opus")
COLUMNS = ("id", "split", "speaker", "text")


class CorpusError(ValueError):
    """The corpus as a whole cannot be read; the message names the file and the remedy."""


class CorpusConfig(Section):
    """Where the audio and the transcripts are.

    `folder`: `root/transcripts.tsv` (header: id, split, speaker, text) and `root/audio/<split>/<id>.<ext>`;
    `train` and `test` name splits. `cuts`: `train` and `test` are Lhotse cut manifests (.jsonl, .jsonl.gz).
    `shar`: `train` and `test` are Lhotse Shar folders. Paths may be local or `s3://`; relative ones are under
    `root`. `channel` chooses one channel of audio that has several. `allow_upsampling` accepts audio below
    the teacher's sampling rate.
    """

    format: Literal["folder", "cuts", "shar"] = "folder"
    root: str | None = None
    train: str = "train"
    test: str | None = "test"
    min_duration_s: Annotated[float, Field(gt=0)] = 0.1
    max_duration_s: Annotated[float, Field(gt=0)] = 30.0
    channel: Annotated[int, Field(ge=0)] | None = None
    allow_upsampling: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format == "folder" and not self.root:
            raise ValueError("format 'folder' needs corpus.root, the folder that holds transcripts.tsv")
        if self.min_duration_s >= self.max_duration_s:
            raise ValueError("min_duration_s must be below max_duration_s")
        return self


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An utterance that cannot be used, with the reason and the remedy."""

    cut_id: str
    reason: str


class Corpus:
    """Reads the cuts of one part (`train` or `test`) of a corpus, in a fixed order.

    Args:
        config: where the corpus is.
        sample_rate_hz: what the teacher takes; audio below it is refused unless `allow_upsampling`.
        options: non-secret fsspec options for `s3://` paths.
    """

    def __init__(
        self, config: CorpusConfig, *, sample_rate_hz: int = 16_000, options: Mapping[str, str] | None = None
    ) -> None:
        self.config = config
        self.sample_rate_hz = sample_rate_hz
        self._options = s3_options(options or {})

    def cuts(self, part: Literal["train", "test"]) -> Iterator[MonoCut | Refused]:
        """Every cut of the part, or the reason why it cannot be used.

        Raises:
            CorpusError: the corpus or the part is missing, or a manifest line cannot be parsed.
        """
        name = getattr(self.config, part)
        if name is None:
            raise CorpusError(f"corpus.{part} is not set in the run file")
        readers = {"folder": self._read_folder, "cuts": self._read_manifest, "shar": self._read_shar}
        empty = True
        for cut in readers[self.config.format](name):
            empty = False
            yield cut if isinstance(cut, Refused) else self._check(cut)
        if empty:
            raise CorpusError(f"corpus.{part}: nothing found in {name!r} (corpus.root {self.config.root!r})")

    def _check(self, cut: Cut) -> MonoCut | Refused:
        config = self.config
        if isinstance(cut, MultiCut) or (isinstance(cut, MonoCut) and not isinstance(cut.channel, int)):
            if config.channel is None:
                channels = cut.num_channels
                return _refuse(cut, f"has {channels} channels; choose one with corpus.channel, or split it")
            cut = cut.to_mono()[config.channel]
        if not isinstance(cut, MonoCut):
            return _refuse(cut, f"is a {type(cut).__name__}; only plain cuts of one recording can be used")
        if not cut.has_recording:
            return _refuse(cut, "has no recording; the manifest must name its audio")
        if cut.duration < config.min_duration_s:
            return _refuse(cut, f"lasts {cut.duration:.3f} s, less than corpus.min_duration_s")
        if cut.duration > config.max_duration_s:
            return _refuse(
                cut,
                f"lasts {cut.duration:.2f} s, more than corpus.max_duration_s {config.max_duration_s:g}; "
                "cut it into windows (lhotse cut trim-to-supervisions) or raise the limit",
            )
        if cut.sampling_rate < self.sample_rate_hz and not config.allow_upsampling:
            return _refuse(
                cut,
                f"is sampled at {cut.sampling_rate} Hz, the teacher takes {self.sample_rate_hz} Hz; "
                "set corpus.allow_upsampling to use it all the same, or choose a teacher of that rate",
            )
        return cut

    def _read_folder(self, split: str) -> Iterator[Cut | Refused]:
        root = self.config.root
        assert root is not None
        path = f"{root.rstrip('/')}/transcripts.tsv"
        seen_splits = set()
        with self._open(path) as lines:
            header = tuple(lines.readline().rstrip("\r\n").split("\t"))
            if header != COLUMNS:
                raise CorpusError(f"{path}: the header must be {' '.join(COLUMNS)} (tabs), not {header}")
            for number, line in enumerate(lines, start=2):
                if not line.strip():
                    continue
                fields = line.rstrip("\r\n").split("\t")
                if len(fields) != len(COLUMNS):
                    raise CorpusError(f"{path}:{number}: {len(fields)} fields instead of {len(COLUMNS)}")
                utterance, its_split, speaker, text = fields
                seen_splits.add(its_split)
                if its_split == split:
                    yield self._cut_of_file(f"{root.rstrip('/')}/audio/{split}", utterance, speaker, text)
        if split not in seen_splits:
            raise CorpusError(f"{path}: no split {split!r}; it has {', '.join(sorted(seen_splits)) or 'none'}")

    def _cut_of_file(self, folder: str, utterance: str, speaker: str, text: str) -> Cut | Refused:
        fs, base = fsspec.url_to_fs(folder, **self._options_for(folder))
        found = next((f"{base}/{utterance}{e}" for e in AUDIO_EXTENSIONS if fs.exists(f"{base}/{utterance}{e}")), None)
        if found is None:
            return Refused(cut_id=utterance, reason=f"has a transcript but no audio file in {folder}")
        try:
            with fs.open(found, "rb") as file:
                info = soundfile.info(file)
        except (soundfile.LibsndfileError, OSError) as error:
            return Refused(cut_id=utterance, reason=f"{found}: the audio cannot be read: {error}")
        if info.frames == 0:
            return Refused(cut_id=utterance, reason=f"{found}: the audio has no samples")
        remote = "://" in folder
        source = fs.unstrip_protocol(found) if remote else found
        recording = Recording(
            id=utterance,
            sources=[AudioSource("url" if remote else "file", list(range(info.channels)), source)],
            sampling_rate=info.samplerate,
            num_samples=info.frames,
            duration=info.frames / info.samplerate,
        )
        supervision = SupervisionSegment(
            id=utterance, recording_id=utterance, start=0.0, duration=recording.duration, text=text, speaker=speaker
        )
        cut = recording.to_cut()
        cut.id, cut.supervisions = utterance, [supervision]
        return cut

    def _read_manifest(self, name: str) -> Iterator[Cut]:
        path = self._under_root(name)
        with self._open(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    cut = deserialize_item(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise CorpusError(f"{path}:{number}: not a Lhotse cut: {error}") from error
                if not isinstance(cut, Cut):
                    raise CorpusError(f"{path}:{number}: a {type(cut).__name__}, not a Lhotse cut")
                yield cut

    def _read_shar(self, name: str) -> Iterator[Cut]:
        folder = self._under_root(name)
        fs, base = fsspec.url_to_fs(folder, **self._options_for(folder))
        if not fs.exists(base):
            raise CorpusError(f"{folder}: no such Shar folder")
        if "://" in folder:
            raise CorpusError(f"{folder}: Shar folders are read from local or mounted disks; copy or mount it")
        yield from LazySharIterator(in_dir=base, split_for_dataloading=False)

    def _under_root(self, name: str) -> str:
        if "://" in name or PurePosixPath(name).is_absolute() or not self.config.root:
            return name
        return f"{self.config.root.rstrip('/')}/{name}"

    def _options_for(self, path: str) -> dict[str, Any]:
        return self._options if path.startswith("s3://") else {}

    def _open(self, path: str) -> Any:
        try:
            file = fsspec.open(path, "rb", **self._options_for(path)).open()
        except FileNotFoundError as error:
            raise CorpusError(f"{path}: no such file; see corpus.root and corpus.format in the run file") from error
        if path.endswith(".gz"):
            return gzip.open(file, "rt", encoding="utf-8")
        return io.TextIOWrapper(file, encoding="utf-8")


def s3_options(options: Mapping[str, str]) -> dict[str, Any]:
    """fsspec arguments for s3fs from the storage section's non-secret options."""
    client = {"region_name": options["region"]} if "region" in options else {}
    out: dict[str, Any] = {"client_kwargs": client} if client else {}
    if "endpoint_url" in options:
        out["endpoint_url"] = options["endpoint_url"]
    return out


def _refuse(cut: Cut, reason: str) -> Refused:
    return Refused(cut_id=cut.id, reason=reason)
