"""What a table holds for every frame: the column's type, how it is stored, built, split again and checked.

Codes (N bytes a frame) or embeddings (D half-precision floats). Another payload is a case of each function below, an
entry in `STORED` and a name in `storage.contract`.

Shape suffixes: T frames of a cut, F frames of all cuts, N codebooks, D embedding dimension, W numbers of a frame (N or
D).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mvqkd.storage.contract import CODES, EMBEDDINGS, TableContract
from mvqkd.storage.errors import TableError

LARGEST_HALF = 65_504.0
"""The largest float16; an utterance with larger embeddings is in no table of them."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a payload lies in a Parquet file: its leaf column, that one's encoding and zstd level."""

    leaf: str
    encoding: str
    zstd_level: int


# Codes: measured on 130 random rows of 134 x 8 codes: 1.004 bytes per index; dictionary 1.008, plain 1.34. They hardly
# compress at any level.
# Embeddings: DuckDB 2.0 reads no BYTE_STREAM_SPLIT of float16, which would save another 8 % of random numbers. Of AN4,
# layer 3 of Whisper base, level 1 makes 0.867 of the bytes at 272 MB/s, level 3 as many at 240 MB/s.
STORED = {
    CODES: Stored(leaf="codes.list.element.list.element", encoding="BYTE_STREAM_SPLIT", zstd_level=9),
    EMBEDDINGS: Stored(leaf="embeddings.list.element.list.element", encoding="PLAIN", zstd_level=1),
}
_NUMBERS: dict[str, tuple[np.dtype[Any], pa.DataType]] = {
    CODES: (np.dtype(np.uint8), pa.uint8()),
    EMBEDDINGS: (np.dtype(np.float16), pa.float16()),
}


def width_of(contract: TableContract) -> int:
    """W, numbers of a frame."""
    return contract.num_codebooks if contract.payload == CODES else contract.dim


def payload_type(contract: TableContract) -> pa.DataType:
    """Arrow type of one row's payload: `list<fixed_size_list<uint8>[N]>`, or of halffloat and D."""
    # Entries that cannot be null need no definition levels, and say so to readers.
    number = pa.field("element", _NUMBERS[contract.payload][1], nullable=False)
    return pa.list_(pa.field("element", pa.list_(number, width_of(contract)), nullable=False))


def payload_column(rows: Sequence[np.ndarray], contract: TableContract) -> pa.Array:
    """The column of checked (T, W) arrays. Raises `TableError` for more frames than a file takes."""
    lengths = np.fromiter((len(values_TW) for values_TW in rows), dtype=np.int64, count=len(rows))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    if offsets[-1] >= 2**31:
        raise TableError(f"{offsets[-1]} frames are more than one shard holds (2**31); use smaller shards")
    empty_FW = np.empty((0, width_of(contract)), dtype=_NUMBERS[contract.payload][0])
    flat_FW = np.concatenate([empty_FW, *rows])
    kind = payload_type(contract)
    frames = pa.FixedSizeListArray.from_arrays(pa.array(flat_FW.reshape(-1)), type=kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), frames, type=kind)


def split_payload(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All frames of a payload's column as one (F, W) array, and its rows' (rows + 1,) offsets."""
    lists = column.combine_chunks()
    flat_FW = np.from_dlpack(lists.values.flatten()).reshape(-1, column.type.value_type.list_size)
    return flat_FW, np.from_dlpack(lists.offsets)


def check_payload(cut: str, values: object, num_frames: int, contract: TableContract) -> None:
    """Raise `TableError`, naming `cut`, unless these are `num_frames` frames of what the contract allows."""
    name, dtype = contract.payload, _NUMBERS[contract.payload][0]
    if not isinstance(values, np.ndarray) or values.dtype != dtype:
        found = getattr(values, "dtype", type(values).__name__)
        raise TableError(f"{cut}: {name} must be a {dtype} array, got {found}")
    if values.ndim != 2 or values.shape[1] != width_of(contract) or len(values) != num_frames:
        wanted = f"({num_frames}, {width_of(contract)})"
        raise TableError(f"{cut}: {name} have shape {values.shape}, num_frames and the contract say {wanted}")
    if name == EMBEDDINGS:
        if not np.isfinite(values).all():
            raise TableError(
                f"{cut}: {name} hold NaN, infinity or numbers beyond float16 ({LARGEST_HALF:g}); leave this cut out "
                "and record it in the failures table"
            )
    elif contract.codebook_size < 256 and values.size and int(values.max()) >= contract.codebook_size:
        raise TableError(
            f"{cut}: code {values.max()} does not exist in codebooks of {contract.codebook_size}"
        )


def checked_payload(
    column: pa.ChunkedArray, num_frames: np.ndarray, contract: TableContract, *, where: str, remedy: str
) -> np.ndarray:
    """The (F, W) numbers of a file's column, once they fit `num_frames` (rows,) and the contract.

    Raises:
        TableError: they do not; names `where` and the remedy.
    """
    name = contract.payload
    values_FW, offsets = split_payload(column)
    if (offsets[1:] - offsets[:-1] != num_frames).any():
        raise TableError(f"{where}: num_frames differ from the {name}; {remedy}")
    if name == EMBEDDINGS:
        if not np.isfinite(values_FW).all():
            raise TableError(f"{where}: embeddings with NaN or infinity; {remedy}")
    elif values_FW.size and values_FW.max() >= contract.codebook_size:
        raise TableError(f"{where}: codes outside the codebooks; {remedy}")
    return values_FW
