"""The folder that is exported to: made aside, and given its names when all is there."""

import gzip
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mvqkd.storage.location import Location
from mvqkd.workers.exchange.export import LEFT_OUT, REPORT
from mvqkd.workers.exchange.names import ExportError

_ASIDE = ".exporting"
_MARK = "_exporting"
"""There while an export is made, and after one that was killed: what lies about then is nobody's."""


class Place:
    """A folder for one export, which holds its report when it is whole.

    Args:
        out: the folder.
        force: whether an export that is there may be replaced.

    Raises:
        ExportError: there is an export.
        StorageError: the folder cannot be looked into.
    """

    def __init__(self, out: Location, *, force: bool) -> None:
        self.out = out
        self._old: list[str] = []
        if out.exists(REPORT):
            if not force:
                raise ExportError(
                    f"{out.full_url(REPORT)}: an export is here already; use another folder, or --force to replace it"
                )
            self._old = _files_of(out)

    def require_free(self, folder: str, is_ours: Sequence[str]) -> None:
        """Refuse to write over files that no export of ours made, then claim the place.

        Args:
            folder: in the place, or "".
            is_ours: names, or beginnings that end with a dot.

        Raises:
            ExportError: one is there.
        """
        prefix, killed = f"{folder}/" if folder else "", self.out.exists(_MARK)
        for name in self.out.names(folder):
            taken = any(name == one or (one.endswith(".") and name.startswith(one)) for one in is_ours)
            if not taken or f"{prefix}{name}" in self._old:
                continue
            if not killed:
                raise ExportError(
                    f"{self.out.full_url(prefix + name)}: is there and of no export; choose another --out"
                )
            self.out.remove(f"{prefix}{name}")
        self.out.replace(_MARK, b"")

    def aside(self) -> Path:
        """An empty folder beside, on the same disk, which must be a local one."""
        path = Path(self.out.url) / _ASIDE
        if path.exists():
            shutil.rmtree(path)  # of an export that was killed
        path.mkdir(parents=True)
        return path

    def release(self) -> None:
        """Give up the claim, and what was made aside."""
        if self.out.is_local:
            shutil.rmtree(Path(self.out.url) / _ASIDE, ignore_errors=True)
        self.out.remove(_MARK)

    def drop_old(self, keep: Sequence[str]) -> None:
        """Delete the export that was there; its report first, so that no half of it looks whole."""
        for name in (REPORT, *self._old) if self._old else ():
            if name not in keep or name == REPORT:
                self.out.remove(name)

    def finish(self, left_out: Path, report: dict[str, Any], files: Sequence[str]) -> None:
        """Write the reasons of the cuts that are left out, then the report, which makes the export whole."""
        if self.out.is_local:
            aside = self.aside() / LEFT_OUT
            shutil.copyfile(left_out, aside)
            aside.replace(Path(self.out.url) / LEFT_OUT)
            aside.parent.rmdir()
        else:
            self.out.replace(LEFT_OUT, left_out.read_bytes())
        content = {**report, "files": [*files, LEFT_OUT]}
        self.out.replace(REPORT, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        self.out.remove(_MARK)


@contextmanager
def gzipped(path: Path) -> Iterator[TextIO]:
    """A text file for lines, packed where its name says so; the same lines give the same bytes."""
    if path.suffix != ".gz":
        with path.open("w", encoding="utf-8") as plain:
            yield plain
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=4) as packed,
    ):
        yield _Lines(packed)  # type: ignore[misc]


class _Lines:
    """Text into a file of bytes. Not `io.TextIOWrapper`, which closes what it wraps when it is forgotten."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


def _files_of(out: Location) -> list[str]:
    try:
        files = json.loads(out.read_bytes(REPORT))["files"]
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise TypeError("files is no list of names")
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{out.full_url(REPORT)}: of no export of ours ({error}); use another folder"
        ) from error
    return files
