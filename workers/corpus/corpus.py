"""The corpus as a lazy stream of Lhotse cuts, each either usable or refused with a reason.

Nothing here holds more than one cut at a time, so ten million of them cost no memory.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

import soundfile
from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from mvqkd.storage.location import open_location
from mvqkd.workers.audio import decode_ahead
from mvqkd.workers.corpus.config import CorpusConfig
from mvqkd.workers.corpus.files import CorpusError, WatchedFile, full_path, open_binary, read_lines
from mvqkd.workers.corpus.shar import parse_cut, read_shar
from mvqkd.workers.cuts import Refused, UtteranceError

AUDIO_EXTENSIONS = (".flac", ".wav", ".ogg", ".mp3", ".opus")
COLUMNS = ("id", "split", "speaker", "text")


class Corpus:
    """Reads the cuts of one part (`train` or `test`) of a corpus, in a fixed order.

    Args:
        config: where the corpus is.
        sample_rate_hz: what the teacher takes; audio below it is refused unless `allow_upsampling`.
        options: of the storage section, for `s3://` paths.
    """

    def __init__(
        self, config: CorpusConfig, *, sample_rate_hz: int = 16_000, options: Mapping[str, str] | None = None
    ) -> None:
        self.config = config
        self.sample_rate_hz = sample_rate_hz
        self._options = dict(options or {})

    def cuts(self, part: Literal["train", "test"]) -> Iterator[MonoCut | Refused]:
        """Every cut of the part, or the reason why it cannot be used.

        Raises:
            CorpusError: the corpus or the part is missing, or a manifest line cannot be parsed.
            StorageError, OSError: the store broke off while audio was looked at; plan again.
        """
        name = getattr(self.config, part)
        if name is None:
            raise CorpusError(f"corpus.{part} is not set in the run file; name the {part} part there")
        readers = {"folder": self._read_folder, "cuts": self._read_manifest, "shar": self._read_shar}
        empty = True
        for cut in readers[self.config.format](name):
            empty = False
            yield cut if isinstance(cut, Refused) else self._check(cut)
        if empty:
            raise CorpusError(
                f"corpus.{part}: nothing found in {name!r} (corpus.root {self.config.root!r}); check both"
            )

    def _check(self, cut: Cut) -> MonoCut | Refused:
        config = self.config
        if isinstance(cut, MultiCut):
            have = list(cut.channel) if isinstance(cut.channel, list) else [cut.channel]
            channel = have[0] if len(have) == 1 else config.channel
            if channel is None:
                return _refuse(
                    cut, f"has {len(have)} channels {have}; choose one with corpus.channel, or split it"
                )
            if channel not in have:
                return _refuse(cut, f"has the channels {have}, not corpus.channel {channel}; choose another")
            cut_id = cut.id
            cut = next(mono for mono in cut.to_mono() if mono.channel == channel)
            cut.id = cut_id
        if not isinstance(cut, MonoCut):
            return _refuse(
                cut,
                f"is a {type(cut).__name__}; only plain cuts of one recording can be used: "
                "write mixed or padded audio to files first",
            )
        if not cut.has_recording:
            return _refuse(
                cut, "has no recording; the manifest must name its audio, features alone do not do"
            )
        if cut.duration < config.min_duration_s:
            return _refuse(
                cut,
                f"lasts {cut.duration:.3f} s, less than corpus.min_duration_s {config.min_duration_s:g}; "
                "remove it or lower the limit",
            )
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
        cut.recording = self._with_full_paths(cut.recording)
        return cut

    def _read_folder(self, split: str) -> Iterator[Cut | Refused]:
        assert self.config.root is not None
        root = full_path(self.config.root.rstrip("/"))
        folder = f"{root}/audio/{split}"
        find = _AudioFinder(folder, self._options)
        # A file in an object store answers in some ten milliseconds, so many are asked at a time.
        threads = 16 if "://" in root else 2
        rows = self._read_transcripts(f"{root}/transcripts.tsv", split)
        for cut in decode_ahead(
            rows, lambda row: self._cut_of_file(find, *row), threads=threads, ahead=4 * threads
        ):
            assert not isinstance(cut, UtteranceError)
            yield cut

    def _read_transcripts(self, path: str, split: str) -> Iterator[tuple[str, str, str]]:
        """Utterance, speaker and text of every line of the split."""
        lines = read_lines(path, self._options)
        header = tuple(next(lines, (0, ""))[1].rstrip("\r\n").split("\t"))
        if header != COLUMNS:
            raise CorpusError(
                f"{path}: the first line must be the header {', '.join(COLUMNS)} (separated by tabs), "
                f"but it is {', '.join(header)}"
            )
        seen_splits = set()
        for number, line in lines:
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != len(COLUMNS):
                raise CorpusError(
                    f"{path}:{number}: {len(fields)} fields instead of {len(COLUMNS)}: {', '.join(COLUMNS)}, "
                    "with tabs between; correct the line"
                )
            utterance, its_split, speaker, text = fields
            seen_splits.add(its_split)
            if its_split == split:
                yield utterance, speaker, text
        if split not in seen_splits:
            have = ", ".join(sorted(seen_splits)) or "none"
            raise CorpusError(f"{path}: no split {split!r}, it has {have}; set corpus.train and corpus.test")

    def _cut_of_file(self, find: "_AudioFinder", utterance: str, speaker: str, text: str) -> Cut | Refused:
        found = find(utterance)
        if found is None:
            extensions = ", ".join(AUDIO_EXTENSIONS)
            return Refused(
                cut_id=utterance,
                reason=f"has a transcript but no audio file {find.folder}/{utterance} ({extensions}); "
                "add the file or remove the line",
            )
        with open_binary(found, self._options) as file:
            watched = WatchedFile(file)
            try:
                info = soundfile.info(watched)
            except soundfile.LibsndfileError as error:
                info = error
        trouble = watched.trouble
        if trouble is not None and not isinstance(trouble, FileNotFoundError):
            raise trouble  # the store's, not the utterance's, which must not be left out for it
        if trouble is not None or isinstance(info, soundfile.LibsndfileError):
            return Refused(
                cut_id=utterance,
                reason=f"{found}: the audio cannot be read ({trouble or info}); write it again",
            )
        if info.frames == 0:
            return Refused(cut_id=utterance, reason=f"{found}: the audio has no samples; remove it")
        recording = Recording(
            id=utterance,
            sources=[AudioSource("url" if "://" in found else "file", list(range(info.channels)), found)],
            sampling_rate=info.samplerate,
            num_samples=info.frames,
            duration=info.frames / info.samplerate,
        )
        cut = recording.to_cut()
        supervision = SupervisionSegment(
            id=utterance,
            recording_id=utterance,
            start=0.0,
            duration=recording.duration,
            channel=cut.channel,
            text=text,
            speaker=speaker or None,
        )
        cut.id, cut.supervisions = utterance, [supervision]
        return cut

    def _read_manifest(self, name: str) -> Iterator[Cut]:
        path = self._under_root(name)
        for number, line in read_lines(path, self._options):
            if line.strip():
                yield parse_cut(line, f"{path}:{number}")

    def _read_shar(self, name: str) -> Iterator[Cut]:
        return read_shar(self._under_root(name), self._options)

    def _under_root(self, name: str) -> str:
        """Relative paths, of manifests and of the audio in them, are under `corpus.root`."""
        if "://" in name or PurePosixPath(name).is_absolute() or not self.config.root:
            return full_path(name)
        return full_path(f"{self.config.root.rstrip('/')}/{name}")

    def _with_full_paths(self, recording: Recording) -> Recording:
        """The recording with sources that any process can open, whatever its working directory."""
        sources = []
        for source in recording.sources:
            if source.type == "file":
                path = self._under_root(source.source)
                kind = "url" if "://" in path else "file"
                source = AudioSource(kind, source.channels, path)
            sources.append(source)
        return fastcopy(recording, sources=sources)


class _AudioFinder:
    """Finds the audio file of an utterance; the extension found last is tried first."""

    def __init__(self, folder: str, options: Mapping[str, Any]) -> None:
        self.folder = folder
        location = open_location(folder, options=options if "://" in folder else {})
        self._filesystem, self._base = location.filesystem, location.base_path
        self._extensions = list(AUDIO_EXTENSIONS)

    def __call__(self, utterance: str) -> str | None:
        for extension in self._extensions:
            if self._filesystem.exists(f"{self._base}/{utterance}{extension}"):
                self._extensions = [extension, *(e for e in AUDIO_EXTENSIONS if e != extension)]
                return f"{self.folder}/{utterance}{extension}"
        return None


def _refuse(cut: Cut, reason: str) -> Refused:
    return Refused(cut_id=cut.id, reason=reason)


__all__ = ["Corpus", "CorpusConfig", "CorpusError"]
