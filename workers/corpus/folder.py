"""A corpus that is a folder: a transcript TSV and one audio file for each utterance."""

import errno
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut

from mvqkd.storage.errors import StorageError
from mvqkd.storage.location import open_location
from mvqkd.workers.corpus.files import CorpusError, WatchedFile, open_binary, read_lines
from mvqkd.workers.corpus.refusals import BadLine, without_bad_lines
from mvqkd.workers.cuts import Refused, UtteranceError
from mvqkd.workers.decode_ahead import decode_ahead

COLUMNS = ("id", "split", "speaker", "text")

_EXTENSIONS = {
    "FLAC": ("flac",), "WAV": ("wav", "wave"), "OGG": ("ogg", "oga", "opus"), "MP3": ("mp3",), "NIST": ("sph", "nist"),
    "AIFF": ("aiff", "aif", "aifc"), "AU": ("au", "snd"), "CAF": ("caf",), "RF64": ("rf64",), "W64": ("w64",),
    "VOC": ("voc",),
}  # fmt: skip
AUDIO_EXTENSIONS = tuple(
    f".{extension}"
    for kind, extensions in _EXTENSIONS.items()
    if kind in soundfile.available_formats()
    for extension in extensions
)
"""Of the files that libsndfile decodes, in small letters."""
FOREIGN_EXTENSIONS = (".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm", ".mka", ".3gp")
"""Of audio that it does not decode."""
_EXTENSIONS_SEEN = frozenset((*AUDIO_EXTENSIONS, *FOREIGN_EXTENSIONS))

_NAMES_KEPT = 5_000_000  # of listings, 10 bytes each

_NO_FOLDER = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)

Row = tuple[str, str, str | None]


def read_folder(
    root: str, split: str, options: Mapping[str, Any], *, bare: bool = False
) -> Iterator[Cut | Refused]:
    """The utterances of a split in the order of `transcripts.tsv`, and a refusal for each that cannot be used.

    Args:
        root: of the corpus.
        split: which of its utterances.
        options: of the storage section.
        bare: where there is no `transcripts.tsv`, take the files of `audio/<split>` as they are, by name.

    Raises:
        CorpusError: the TSV is missing, damaged or of another kind, or has no such split.
        StorageError, OSError: the store broke off.
    """
    files = AudioFolder(f"{root}/audio/{split}", options)
    if bare and not open_location(root, options=files.options).exists("transcripts.tsv"):
        found: Iterable[Row | Refused] = files.rows()
    else:
        found = _read_transcripts(f"{root}/transcripts.tsv", split, options)
    rows = (row if isinstance(row, Refused) else (row, files.find(row[0])) for row in found)

    def cut_of(row: Refused | tuple[Row, list[str]]) -> Cut | Refused:
        return row if isinstance(row, Refused) else _cut_of_files(row[0], row[1], files, options)

    # A file in an object store answers in some ten milliseconds, so many are asked at a time.
    threads = 16 if "://" in root else 2
    for cut in decode_ahead(rows, cut_of, threads=threads, ahead=4 * threads):
        assert not isinstance(cut, UtteranceError)
        yield cut


def _read_transcripts(path: str, split: str, options: Mapping[str, Any]) -> Iterator[Row | Refused]:
    """Utterance, speaker and text of every line of the split."""
    lines = read_lines(path, options)
    header = tuple(next(lines, (0, ""))[1].rstrip("\r\n").split("\t"))
    if header != COLUMNS:
        raise CorpusError(
            f"{path}: the first line must be the header {', '.join(COLUMNS)} (separated by tabs), "
            f"but it is {', '.join(header)}"
        )
    seen_splits = set()
    rows = (_row(line, f"{path}:{number}") for number, line in lines if line.strip())
    for row in without_bad_lines(rows, wanted="transcripts", remedy="correct the lines"):
        if isinstance(row, Refused):
            yield row
            continue
        where, fields = row
        utterance, its_split, speaker, text = fields
        seen_splits.add(its_split)
        if its_split != split:
            continue
        if any(part in ("", ".", "..") for part in utterance.split("/")) or "\0" in utterance:
            yield Refused(
                cut_id=utterance or where, reason=f"{where}: id {utterance!r} names no file; correct the line"
            )
        else:
            yield utterance, speaker, text
    if split not in seen_splits:
        have = ", ".join(sorted(seen_splits)) or "none"
        raise CorpusError(f"{path}: no split {split!r}, it has {have}; set corpus.train and corpus.test")


def _row(line: str, where: str) -> tuple[str, list[str]] | BadLine:
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) == len(COLUMNS):
        return where, fields
    problem = f"{len(fields)} fields instead of {len(COLUMNS)}: {', '.join(COLUMNS)}, with tabs between"
    return BadLine(where=where, problem=problem)


class AudioFolder:
    """Finds the audio files of utterances, whatever their extension and its case, by one listing of a folder.

    A listing is kept as 8 bytes of hash and 2 of extension for each file, so a million of them are 10 MB. Ids may
    hold slashes; then each folder is listed, and those used last are kept.
    """

    def __init__(self, folder: str, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self.options = options if folder.startswith("s3://") else {}
        self._location = open_location(folder, options=self.options)
        self._listings: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._suffixes: dict[str, int] = {}  # as the files have them

    def find(self, utterance: str) -> list[str]:
        """The paths or urls of the utterance's audio files."""
        folder, _, stem = utterance.rpartition("/")
        hashes, suffixes = self._listing(folder)
        first, end = (
            np.searchsorted(hashes, [hash(stem)], "left")[0],
            np.searchsorted(hashes, hash(stem), "right"),
        )
        names = list(self._suffixes)
        paths = [f"{utterance}{names[suffix]}" for suffix in suffixes[first:end]]
        if len(paths) > 1:
            # Two files, or two names of one hash.
            paths = [path for path in paths if self._location.exists(path)]
        return [f"{self.folder}/{path}" for path in sorted(paths)]

    def rows(self) -> Iterator[Row]:
        """An utterance without speaker and text for each audio file that lies directly in the folder, by name.

        Raises:
            CorpusError: there is none.
        """
        stems = dict.fromkeys(
            name.rpartition(".")[0]
            for name in self._location.list()
            if _extension_of(name) in _EXTENSIONS_SEEN
        )
        if not stems:
            raise CorpusError(
                f"{self.folder}: no audio files, and no transcripts.tsv; see corpus.root and corpus.train"
            )
        return ((stem, "", None) for stem in stems)

    def _names(self, folder: str) -> Iterable[str]:
        try:
            return self._location.list(folder)
        except StorageError as error:
            # An id with slashes may name a folder that cannot be; that is the utterance's fault.
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_FOLDER:
                return ()
            raise

    def _listing(self, folder: str) -> tuple[np.ndarray, np.ndarray]:
        """Sorted hashes of the names without their extension, and which extension each has."""
        if folder in self._listings:
            self._listings.move_to_end(folder)
            return self._listings[folder]
        hashes, suffixes = [], []
        for name in self._names(folder):
            stem, dot, extension = name.rpartition(".")
            if _extension_of(name) in _EXTENSIONS_SEEN:
                hashes.append(hash(stem))
                suffixes.append(self._suffixes.setdefault(dot + extension, len(self._suffixes)))
        hashes_array = np.array(hashes, dtype=np.int64)
        order = np.argsort(hashes_array, kind="stable")
        self._listings[folder] = (hashes_array[order], np.array(suffixes, dtype=np.uint16)[order])
        while len(self._listings) > 1 and sum(len(h) for h, _ in self._listings.values()) > _NAMES_KEPT:
            self._listings.popitem(last=False)
        return self._listings[folder]


def _extension_of(name: str) -> str:
    return f".{name.rpartition('.')[2].lower()}"


def _cut_of_files(
    row: Row, paths: list[str], files: AudioFolder, options: Mapping[str, Any]
) -> Cut | Refused:
    utterance, speaker, text = row
    problem = None
    if not paths:
        extensions = ", ".join(AUDIO_EXTENSIONS)
        problem = (
            f"has a transcript but no audio file {files.folder}/{utterance} ({extensions}); "
            "add the file or remove the line"
        )
    elif len(paths) > 1:
        problem = f"has {len(paths)} audio files, {' and '.join(paths)}; remove all but one"
    elif paths[0].lower().endswith(FOREIGN_EXTENSIONS):
        problem = f"{paths[0]}: libsndfile does not decode such files; convert it, to FLAC for instance"
    info = problem or _info(paths[0], options)
    if isinstance(info, str):
        return Refused(cut_id=utterance, reason=info)
    recording = Recording(
        id=utterance,
        sources=[AudioSource("url" if "://" in paths[0] else "file", list(range(info.channels)), paths[0])],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
    )
    cut = recording.to_cut()
    cut.id = utterance
    if text is None:
        return cut
    supervision = SupervisionSegment(
        id=utterance,
        recording_id=utterance,
        start=0.0,
        duration=recording.duration,
        channel=cut.channel,
        text=text,
        speaker=speaker or None,
    )
    cut.supervisions = [supervision]
    return cut


def _info(path: str, options: Mapping[str, Any]) -> Any | str:
    """What the header of an audio file says, or why it cannot be used."""
    with open_binary(path, options) as file:
        watched = WatchedFile(file)
        try:
            info = soundfile.info(watched)
        except soundfile.LibsndfileError as error:
            info = error
    trouble = watched.trouble
    if trouble is not None and not isinstance(trouble, FileNotFoundError):
        raise trouble  # the store's, not the utterance's, which must not be left out for it
    if trouble is not None or isinstance(info, soundfile.LibsndfileError):
        return f"{path}: the audio cannot be read ({trouble or info}); write it again"
    if info.frames == 0:
        return f"{path}: the audio has no samples; remove it"
    return info
