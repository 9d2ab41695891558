"""Codes as a field of a Lhotse Shar folder: `FIELD.000000.tar` beside `cuts.000000.jsonl.gz`.

Lhotse's own writer sets the start of every cut and of every array to 0, which is right only where the audio is written
too, cut to the cut. So the files are written here, with Lhotse's writers of tar files and audio: without audio a cut
keeps its start, and its codes have the same one.

Of a folder that is Shar already, only the tars of the codes are written: one for each of its shards, in the same order,
with Lhotse's placeholder where a cut has no codes.

Shape suffixes: T frames, N codebooks.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from lhotse import MonoCut, Recording
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers.audio import AudioTarWriter
from lhotse.shar.writers.tar import TarWriter
from lhotse.utils import fastcopy

from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.manifest import cut_of_object
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.exchange.code_index import CodeIndex
from mvqkd.workers.exchange.export import Left, Taken
from mvqkd.workers.exchange.lines import fits_tar, with_array, with_root
from mvqkd.workers.exchange.names import ExportError
from mvqkd.workers.exchange.place import Place, gzipped

FOLDER = "shar"
"""Below the place of the export: Lhotse takes every file of a Shar folder for a field."""
SHARD_CUTS = 1000


class SharTarget:
    """A Shar folder, or the tars that add codes to one.

    Args:
        out: a folder, local or `s3://`.
        tables, fields: the tables and the fields of their codes.
        cuts: what is exported: manifests, or one Shar folder.
        audio: `flac` or `wav`, to write the audio of each cut too; None to refer to where it lies.
        root: folder of audio with relative paths.
        options: of the storage section, for `s3://`.
        force: whether an export that is there may be replaced.
        shard_cuts: cuts of a shard.

    Raises:
        ExportError: the folder holds what would be written over, or Shar folders and manifests are mixed.
    """

    def __init__(
        self,
        out: Location,
        tables: Sequence[IndexTable],
        fields: Sequence[str],
        cuts: Sequence[str],
        *,
        audio: str | None = None,
        root: str | None = None,
        options: Mapping[str, Any],
        force: bool = False,
        shard_cuts: int = SHARD_CUTS,
    ) -> None:
        shar = [url for url in cuts if not url.endswith((".jsonl", ".jsonl.gz"))]
        if shar and (len(cuts) > 1 or audio):
            raise ExportError(f"{shar[0]}: codes are added to one Shar folder, alone and without --audio")
        self._beside = bool(shar)
        self._tables, self._fields, self._audio, self._root = tables, fields, audio, root
        self._options, self._shard_cuts = options, shard_cuts
        self._place = Place(out, force=force)
        names = [*fields, *([] if shar else ["cuts"]), *(["recording"] if audio else [])]
        self._place.require_free(FOLDER, [f"{name}." for name in names])
        self._temporary = tempfile.TemporaryDirectory(prefix="mvqkd-shar-")
        self._aside = Path(self._temporary.name)
        self._codes: list[Path] = []
        self._loaders: dict[int, AudioLoader] = {}
        self._shard: _Shard | None = None
        self._done: list[str] = []

    def put_codes(self, index: CodeIndex, source: int) -> Iterator[None]:
        """Put the codes in use of a table into one file on this disk, from where they are read in the cuts' order."""
        self._codes.append(self._aside / f"codes-{source}")
        with self._codes[source].open("wb") as file:
            for _, rows in index.used_codes(source):
                for number, _, codes_TN in rows:
                    index.place(number, file.tell(), "")
                    file.write(np.ascontiguousarray(codes_TN).tobytes())
                yield

    def write(self, cut: Taken | Left) -> Left | None:
        """Write a cut and its codes; what is left out has a placeholder in a folder that is Shar already."""
        if isinstance(cut, Left):
            if self._beside:
                if cut.shard is None:
                    raise ExportError(
                        f"{cut.reason}; a Shar folder is read in step, so none of its lines may be bad"
                    )
                self._shard_of(cut.shard).placeholder(cut.cut_id)
            return None

        def left(reason: str) -> Left:
            return Left(source=cut.line.source, line=cut.line.line, cut_id=cut.line.cut_id, kind="unusable",
                        reason=reason)  # fmt: skip

        if not fits_tar(cut.line.cut_id):
            if self._beside:
                raise ExportError(
                    f"{cut.line.cut_id!r}: its id is no name in a tar file; write the folder again"
                )
            return left("its id is no name in a tar file; rename the cut, without '//', '.' or '..'")
        data = cut.line.data
        try:
            audio = self._load(data, f"{cut.line.source}:{cut.line.line}") if self._audio else None
        except UtteranceError as error:
            return left(error.problem)
        data = with_root(data, self._root) if audio is None else {**audio[1], "id": data["id"]}
        shard = self._shard_of(cut.line.shard)
        for source, (table, row) in enumerate(zip(self._tables, cut.rows, strict=True)):
            assert row.file is not None, "checked before"
            shape = [row.frames, table.contract.num_codebooks]
            array = {"storage_type": "shar", "storage_path": "", "storage_key": "", "shape": shape}
            field = self._fields[source]
            data = with_array(data, field, array=array, frame_shift_s=1 / table.contract.frame_rate_hz)
            codes_TN = np.frombuffer(
                _read(shard.codes[source], row.file, shape[0] * shape[1]), dtype=np.uint8
            )
            shard.add(field, data["id"], codes_TN.reshape(shape), data["custom"][field])
        shard.add_cut(data, audio)
        return None

    def finish(self, left_out: Path, report: dict[str, Any]) -> None:
        """Put the last tars, then the cuts, to their names, and write the report."""
        self._close_shard()
        self._place.drop_old([f"{FOLDER}/{name}" for name in self._done])
        for path in sorted(self._aside.glob("cuts.*")):
            self._publish(path)
        report |= {"to": "lhotse-shar", "out": self._place.out.full_url(FOLDER), "fields": list(self._fields),
                   "audio": self._audio, "notes": []}  # fmt: skip
        self._place.finish(left_out, report, [f"{FOLDER}/{name}" for name in self._done])
        self._temporary.cleanup()

    def abandon(self) -> None:
        """Take away what was written."""
        if self._shard is not None:
            self._shard.close()
        for name in self._done:
            self._place.out.remove(f"{FOLDER}/{name}")
        self._place.release()
        self._temporary.cleanup()

    def _shard_of(self, number: str | None) -> "_Shard":
        """The shard that the next cut belongs to."""
        shard = self._shard
        if shard is not None and (
            shard.number == number if self._beside else shard.num_cuts < self._shard_cuts
        ):
            return shard
        made = 0 if shard is None else shard.position + 1
        self._close_shard()
        names = [*self._fields, *(["recording"] if self._audio else [])]
        self._shard = _Shard(
            self._aside,
            number or f"{made:06d}",
            position=made,
            names=names,
            audio=self._audio,
            codes=self._codes,
            cuts=not self._beside,
        )
        return self._shard

    def _close_shard(self) -> None:
        if self._shard is None:
            return
        self._shard.close()
        for path in sorted(self._aside.glob("*.tar")):
            self._publish(path)

    def _publish(self, path: Path) -> None:
        """Tars as they are made, cuts last: without its cuts no reader takes a folder for Shar."""
        self._place.out.replace(f"{FOLDER}/{path.name}", path.read_bytes())
        self._done.append(path.name)
        path.unlink()

    def _load(self, data: Mapping[str, Any], where: str) -> tuple[np.ndarray, dict[str, Any], int]:
        """Samples of a cut, the cut as Shar has it (from 0, its recording cut to it), and its sampling rate."""
        whole = with_root(json.loads(json.dumps(data)), self._root)
        custom = whole.pop("custom", None)
        whole.pop("features", None)
        cut = cut_of_object(whole, where)
        if not isinstance(cut, MonoCut):
            raise UtteranceError(str(data["id"]), str(getattr(cut, "reason", "is no plain cut")))
        rate = cut.recording.sampling_rate
        loader = self._loaders.setdefault(rate, AudioLoader(rate, s3=self._options, root=self._root))
        samples = loader(cut).numpy()
        recording = fastcopy(
            to_shar_placeholder(cut.recording, cut), channel_ids=[cut.channel], num_samples=len(samples)
        )
        recording.sources[0].channels = [cut.channel]
        plain: dict[str, Any] = {**data, "start": 0.0, "recording": recording.to_dict(), "type": "MonoCut"}
        plain.pop("features", None)  # their times are those of the whole recording
        plain["custom"] = {name: _moved(value, data["start"]) for name, value in (custom or {}).items()}
        return samples, plain, rate


class _Shard:
    """The files of one shard, being written."""

    def __init__(
        self,
        folder: Path,
        number: str,
        *,
        position: int,
        names: Sequence[str],
        audio: str | None,
        codes: Sequence[Path],
        cuts: bool,
    ) -> None:
        self.number, self.position, self.num_cuts = number, position, 0
        self._open = ExitStack()
        self.codes = [self._open.enter_context(path.open("rb")) for path in codes]
        self._tars = {
            name: self._open.enter_context(TarWriter(str(folder / f"{name}.{number}.tar"), None))
            for name in names
            if name != "recording"
        }
        self._audio = (
            self._open.enter_context(
                AudioTarWriter(str(folder / f"recording.{number}.tar"), None, format=audio)
            )
            if audio
            else None
        )
        self._cuts: TextIO | None = (
            self._open.enter_context(gzipped(folder / f"cuts.{number}.jsonl.gz")) if cuts else None
        )

    def add(self, field: str, cut_id: str, codes_TN: np.ndarray, manifest: Mapping[str, Any]) -> None:
        """The codes of a cut, then their manifest, as Lhotse's reader takes them in turn."""
        data = io.BytesIO()
        np.save(data, codes_TN, allow_pickle=False)
        self._tars[field].write(f"{cut_id}.npy", data)
        self._tars[field].write(
            f"{cut_id}.json", io.BytesIO(f"{json.dumps(manifest)}\n".encode()), count=False
        )

    def add_cut(self, cut: Mapping[str, Any], audio: tuple[np.ndarray, dict[str, Any], int] | None) -> None:
        """The cut itself, and its audio."""
        self.num_cuts += 1
        if self._cuts is not None:
            self._cuts.write(json.dumps(cut, ensure_ascii=False) + "\n")
        if self._audio is not None:
            assert audio is not None, "loaded before"
            samples, plain, rate = audio
            recording = Recording.from_dict(json.loads(json.dumps(plain["recording"])))
            self._audio.write(cut["id"], samples[None], rate, manifest=recording)

    def placeholder(self, cut_id: str) -> None:
        """Nothing, in the place of a cut's codes."""
        for tar in self._tars.values():
            tar.write(f"{cut_id}.nodata", io.BytesIO())
            tar.write(f"{cut_id}.nometa", io.BytesIO(), count=False)

    def close(self) -> None:
        """Finish all files."""
        self._open.close()


def _moved(value: Any, start_s: float) -> Any:
    """A custom field of a cut that begins at 0 now; arrays over time begin earlier too."""
    if isinstance(value, dict) and "array" in value and isinstance(value.get("start"), int | float):
        return {**value, "start": round(value["start"] - start_s, 8)}
    return value


def _read(file: Any, start: int, size: int) -> bytes:
    file.seek(start)
    data: bytes = file.read(size)
    assert len(data) == size, "written by the same process"
    return data
