"""What a table holds for every frame: the column's type, how it is stored, built, split again and checked.

Codes are the only payload. Another one is a function of each kind below and an entry in `STORED`.
Shape suffixes: T frames of a cut, F frames of all cuts, N codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import TableError

CODES = "codes"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a payload lies in a Parquet file: its leaf column, that one's encoding and zstd level."""

    leaf: str
    encoding: str
    zstd_level: int


# Measured on 130 random rows of 134 x 8 codes: 1.004 bytes per index; dictionary 1.008, plain 1.34. Codes hardly
# compress at any level.
STORED = {
    CODES: Stored(leaf="codes.list.element.list.element", encoding="BYTE_STREAM_SPLIT", zstd_level=9),
}


def codes_type(num_codebooks: int) -> pa.DataType:
    """Arrow type of one row's codes: `list<fixed_size_list<uint8>[num_codebooks]>`."""
    # Entries that cannot be null need no definition levels, and say so to readers.
    frame = pa.list_(pa.field("element", pa.uint8(), nullable=False), num_codebooks)
    return pa.list_(pa.field("element", frame, nullable=False))


def codes_column(codes: Sequence[np.ndarray], num_codebooks: int) -> pa.Array:
    """The column of (T, num_codebooks) uint8 arrays. Raises `TableError` for more frames than a file takes."""
    lengths = np.fromiter((len(codes_TN) for codes_TN in codes), dtype=np.int64, count=len(codes))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    if offsets[-1] >= 2**31:
        raise TableError(f"{offsets[-1]} frames are more than one shard holds (2**31); use smaller shards")
    flat_FN = np.concatenate([np.empty((0, num_codebooks), dtype=np.uint8), *codes])
    kind = codes_type(num_codebooks)
    frames = pa.FixedSizeListArray.from_arrays(pa.array(flat_FN.reshape(-1)), type=kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), frames, type=kind)


def split_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All codes of a `codes` column as one (F, N) uint8 array, and its rows' (rows + 1,) offsets."""
    lists = column.combine_chunks()
    flat_FN = np.from_dlpack(lists.values.flatten()).reshape(-1, column.type.value_type.list_size)
    return flat_FN, np.from_dlpack(lists.offsets)


def check_codes(cut: str, codes: object, num_frames: int, contract: TableContract) -> None:
    """Raise `TableError`, naming `cut`, unless these are `num_frames` frames of codes that the contract allows."""
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8:
        raise TableError(
            f"{cut}: codes must be a uint8 array, got {getattr(codes, 'dtype', type(codes).__name__)}"
        )
    if codes.ndim != 2 or codes.shape[1] != contract.num_codebooks or len(codes) != num_frames:
        wanted = f"({num_frames}, {contract.num_codebooks})"
        raise TableError(f"{cut}: codes have shape {codes.shape}, num_frames and the contract say {wanted}")
    if contract.codebook_size < 256 and codes.size and int(codes.max()) >= contract.codebook_size:
        raise TableError(f"{cut}: code {codes.max()} does not exist in codebooks of {contract.codebook_size}")


def checked_codes(
    column: pa.ChunkedArray, num_frames: np.ndarray, contract: TableContract, *, where: str, remedy: str
) -> np.ndarray:
    """The (F, N) codes of a file's column, once they fit `num_frames` (rows,) and the codebooks.

    Raises:
        TableError: they do not; names `where` and the remedy.
    """
    codes_FN, offsets = split_codes(column)
    if (offsets[1:] - offsets[:-1] != num_frames).any():
        raise TableError(f"{where}: num_frames differ from the codes; {remedy}")
    if codes_FN.size and codes_FN.max() >= contract.codebook_size:
        raise TableError(f"{where}: codes outside the codebooks; {remedy}")
    return codes_FN
