"""Codes that others stored: icefall's in HDF5 by Lhotse, SPEAR's in one `.npy` file for each cut.

Shape suffixes: T frames, N codebooks.
"""

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from mvqkd.workers.corpus.files import fetch
from mvqkd.workers.exchange.icefall import need_h5py

_OPEN_FILES = 16
_KINDS = ("numpy_hdf5", "numpy_files")


class ForeignCodesError(ValueError):
    """The codes of one cut cannot be had; the message says why."""


class ForeignCodes:
    """Reads the codes of cuts. Close it, or use it in a `with` block.

    Args:
        root: folder that relative paths of codes are under; the working directory by default.
        folder: of `.npy` files named by cut ids, for cuts that do not say where their codes are.
        options: of the storage section, for `s3://`.
    """

    def __init__(self, *, root: str | None, folder: str | None, options: Mapping[str, Any]) -> None:
        self._root, self._folder, self._options = root, folder, options
        # Lhotse's own reader keeps every file open that it has read from.
        self._files: OrderedDict[str, Any] = OrderedDict()

    def __enter__(self) -> "ForeignCodes":
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def read(self, cut_id: str, reference: object) -> np.ndarray:
        """uint8 codes (T, N) of a cut.

        Args:
            cut_id: of it.
            reference: what stands in its custom field, None where nothing does.

        Raises:
            ForeignCodesError: there are none, or they are no codes.
            ExportError: h5py is missing.
            StorageError: the store broke off.
        """
        try:
            if isinstance(reference, Mapping) and "path" in reference:
                codes = self._npy(str(reference["path"]))
            elif isinstance(reference, Mapping):
                codes = self._of_lhotse(reference)
            elif self._folder is not None:
                codes = self._of_folder(cut_id, self._folder)
            else:
                raise ForeignCodesError(
                    "has no codes in this field; leave it out, or name the field with --field"
                )
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ForeignCodesError):
                raise
            raise ForeignCodesError(
                f"its codes cannot be read ({error}); correct --root or the manifest"
            ) from error
        return _as_codes(codes)

    def _of_lhotse(self, reference: Mapping[str, Any]) -> np.ndarray:
        array = reference.get("array", reference)
        kind, path, key = array["storage_type"], str(array["storage_path"]), str(array["storage_key"])
        if kind == "numpy_files":
            return self._npy(f"{path.rstrip('/')}/{key}")
        if kind != "numpy_hdf5":
            raise ForeignCodesError(
                f"its codes are stored as {kind!r}, only {' and '.join(_KINDS)} are read; store them again"
            )
        data: np.ndarray = self._hdf5(self._full(path))[key][()]
        return data

    def _hdf5(self, path: str) -> Any:
        need_h5py()
        import h5py

        if path in self._files:
            self._files.move_to_end(path)
        else:
            if len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = h5py.File(path, "r")
        return self._files[path]

    def _of_folder(self, cut_id: str, folder: str) -> np.ndarray:
        """By the cut's id, below its first two parts as SPEAR does it, or not."""
        below = "/".join(cut_id.split("-")[:2])
        tried = [f"{folder.rstrip('/')}/{name}.npy" for name in (cut_id, f"{below}/{cut_id}")]
        for path in tried:
            try:
                return self._npy(path)
            except FileNotFoundError:
                continue
        raise ForeignCodesError(f"no codes: neither {tried[0]} nor {tried[1]} is there")

    def _npy(self, path: str) -> np.ndarray:
        data: np.ndarray = np.load(io.BytesIO(fetch(self._full(path), self._options)), allow_pickle=False)
        return data

    def _full(self, path: str) -> str:
        if self._root is None or "://" in path or path.startswith("/"):
            return path
        return f"{self._root.rstrip('/')}/{path}"


def frame_rate_of(reference: object) -> float | None:
    """Frames a second that the manifest of some codes claims; None where it says nothing."""
    if not isinstance(reference, Mapping):
        return None
    shift_s = reference.get("frame_shift", reference.get("frame-shift"))
    if isinstance(shift_s, bool) or not isinstance(shift_s, int | float) or not 0 < shift_s < 10:
        return None
    return round(1 / shift_s, 6)


def _as_codes(codes: Any) -> np.ndarray:
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu" or not codes.size:
        shape = getattr(codes, "shape", type(codes).__name__)
        raise ForeignCodesError(
            f"its codes are {getattr(codes, 'dtype', '')} of shape {shape}, not whole numbers (frames, codebooks)"
        )
    if codes.min() < 0 or codes.max() > 255:
        raise ForeignCodesError(f"its codes go from {codes.min()} to {codes.max()}, beyond 0 to 255")
    return np.ascontiguousarray(codes, dtype=np.uint8)
