"""Codes as icefall's recipes read them: HDF5 files by Lhotse's own writer, and manifests with a `TemporalArray` each.

`pruned_transducer_stateless6` loads `codebook_indexes` of every cut of a batch with `collate_custom_field`, joins two
frames of 8 codes at 50 Hz to one target of 16, and has that 16 in its code. Later recipes take other numbers of
codebooks and several fields.

Shape suffixes: T frames, N codebooks.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from lhotse.utils import compute_num_frames

from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.exchange.code_index import CodeIndex
from mvqkd.workers.exchange.export import Left, Taken
from mvqkd.workers.exchange.lines import with_array, with_root
from mvqkd.workers.exchange.names import ExportError
from mvqkd.workers.exchange.place import Place, gzipped

FILE_BYTES = 2**30
"""Of codes in an HDF5 file, some 700 hours of 8 codebooks: Lhotse keeps every file open that it has read from."""
_RECIPE_CODEBOOKS, _RECIPE_RATE_HZ = 8, 50.0
_FBANK_SHIFT_S, _FBANK_RATE_HZ = 0.01, 16_000


class IcefallTarget:
    """HDF5 files `FIELD.000000.h5` and a manifest for each that is given, of the same name.

    Args:
        out: a local folder.
        tables, fields: the tables and the custom fields of their codes.
        cuts: the manifests; none for one that is called `cuts.jsonl.gz`.
        root: folder of audio with relative paths; None to leave paths as they are.
        force: whether an export that is there may be replaced.
        file_bytes: of codes in an HDF5 file, about.

    Raises:
        ExportError: the folder is none, or holds what would be written over; two manifests have the same name;
            or h5py is missing.
    """

    def __init__(
        self,
        out: Location,
        tables: Sequence[IndexTable],
        fields: Sequence[str],
        cuts: Sequence[str],
        *,
        root: str | None = None,
        force: bool = False,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        need_h5py()
        if not out.is_local:
            raise ExportError(f"{out.url}: HDF5 files are written to a local folder; copy them from there")
        self._names = _manifest_names(cuts)
        self._place = Place(out, force=force)
        self._folder = Path(out.url)
        for url in cuts:
            if Path(url).resolve() == (self._folder / self._names[url]).resolve():
                raise ExportError(
                    f"{url}: would be written over by its copy with codes; choose another --out"
                )
        self._place.require_free("", [*self._names.values(), *(f"{field}." for field in fields)])
        self._aside = self._place.aside()
        self._tables, self._fields, self._root, self._file_bytes = tables, fields, root, file_bytes
        self._files: list[str] = []
        self._open = ExitStack()
        self._manifests: dict[str, TextIO] = {}
        self._short = 0

    def put_codes(self, index: CodeIndex, source: int) -> Iterator[None]:
        """Write the codes in use of a table into HDF5 files; one step for each shard."""
        from lhotse import NumpyHdf5Writer

        writer, keys, size = None, set[str](), 0
        try:
            for _, rows in index.used_codes(source):
                for number, cut_id, codes_TN in rows:
                    if writer is None or size >= self._file_bytes:
                        if writer is not None:
                            writer.close()
                        name = f"{self._fields[source]}.{self._files_of(source):06d}.h5"
                        writer, keys, size = NumpyHdf5Writer(self._aside / name), set(), 0
                        self._files.append(name)
                    key = _free_key(cut_id, keys)
                    keys.add(key)
                    size += codes_TN.nbytes
                    writer.write(key, codes_TN)
                    index.place(number, self._files_of(source) - 1, key)
                yield
        finally:
            if writer is not None:
                writer.close()

    def write(self, cut: Taken | Left) -> Left | None:
        """Write a cut into the copy of its manifest; one that is left out is not in it."""
        if isinstance(cut, Left):
            return None
        data = with_root(cut.line.data, self._root)
        for table, field, row in zip(self._tables, self._fields, cut.rows, strict=True):
            contract = table.contract
            array = {
                "storage_type": "numpy_hdf5",
                "storage_path": str(self._folder / f"{field}.{row.file:06d}.h5"),
                "storage_key": row.key,
                "shape": [row.frames, contract.num_codebooks],
            }
            data = with_array(data, field, array=array, frame_shift_s=1 / contract.frame_rate_hz)
            self._short += row.frames < _frames_of_recipe(data) and contract.frame_rate_hz == _RECIPE_RATE_HZ
        self._manifest(cut.line.source).write(json.dumps(data, ensure_ascii=False) + "\n")
        return None

    def finish(self, left_out: Path, report: dict[str, Any]) -> None:
        """Move the HDF5 files, then the manifests, to their names, and write the report."""
        self._open.close()
        files = [*self._files, *self._manifests]
        self._place.drop_old(files)
        for name in files:
            (self._aside / name).replace(self._folder / name)
        self._aside.rmdir()
        report |= {"to": "icefall", "out": str(self._folder), "fields": list(self._fields),
                   "manifests": sorted(self._manifests), "notes": self._notes()}  # fmt: skip
        self._place.finish(left_out, report, files)

    def abandon(self) -> None:
        """Take away what was written."""
        self._open.close()
        self._place.release()

    def _files_of(self, source: int) -> int:
        """HDF5 files of a table so far."""
        return sum(name.startswith(f"{self._fields[source]}.") for name in self._files)

    def _manifest(self, source: str) -> TextIO:
        # The lines of a table come from its shards, those of a Shar folder from its files; both have one manifest.
        name = self._names.get(source, "cuts.jsonl.gz")
        if name not in self._manifests:
            self._manifests[name] = self._open.enter_context(gzipped(self._aside / name))
        return self._manifests[name]

    def _notes(self) -> list[str]:
        notes = []
        for table in self._tables:
            have = (table.contract.num_codebooks, table.contract.frame_rate_hz)
            if have != (_RECIPE_CODEBOOKS, _RECIPE_RATE_HZ):
                notes.append(
                    f"pruned_transducer_stateless6 takes 8 codebooks at 50 Hz, {table.location.url} has {have[0]} at "
                    f"{have[1]:g} Hz: set its num_codebooks and the joining of frames, or use a later recipe"
                )
        if self._short:
            notes.append(
                f"{self._short} cuts have fewer codes than twice the frames of the recipe's encoder; a batch whose "
                "longest cut is one of them ends its training: leave them out"
            )
        return notes


def need_h5py() -> None:
    """Raise `ExportError`, with the remedy, where h5py is missing."""
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise ExportError(
            "icefall's codes lie in HDF5 files, and h5py is not installed; pip install 'mvqkd[icefall]'"
        ) from error


def _manifest_names(cuts: Sequence[str]) -> Mapping[str, str]:
    names = {}
    for url in cuts:
        name = url.rstrip("/").rpartition("/")[2]
        if not name.endswith((".jsonl", ".jsonl.gz")):
            raise ExportError(
                f"{url}: icefall reads manifests; give one (.jsonl, .jsonl.gz), or --to lhotse-shar"
            )
        names[url] = name
    if len(set(names.values())) != len(cuts):
        raise ExportError("--cuts: two manifests have the same name; export them into two folders")
    return names


def _free_key(cut_id: str, taken: set[str]) -> str:
    """A name in an HDF5 file, where `/` makes a group and `.` is the group itself: the cut's id wherever that goes."""
    key = re.sub(r"[/%\0]", lambda match: f"%{ord(match[0]):02X}", cut_id)
    key = key if key.strip(".") else f"%{key}"
    number, name = 1, key
    while name in taken:
        number += 1
        name = f"{key}~{number}"
    return name


def _frames_of_recipe(cut: Mapping[str, Any]) -> int:
    """Codes that the recipe's encoder asks for: two for each of its frames, of features of 10 ms."""
    features = compute_num_frames(float(cut["duration"]), _FBANK_SHIFT_S, _FBANK_RATE_HZ)
    return 2 * (((features - 1) // 2 - 1) // 2)
