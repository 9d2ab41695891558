"""Rows of an index table and their Parquet form: pure functions, the same bytes for the same rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import TableError

CONTRACT_KEY = b"mvqkd.contract"
CODES_LEAF = "codes.list.element.list.element"
EXTRACT_AGAIN = "delete this object and run extract again, which computes only this shard"


class IndexRow(TypedDict):
    """One cut of an index table.

    Keys:
        cut_id, recording_id, channel, start (s), duration (s), speed (perturbation factor, 1.0 normally),
        num_samples (as the teacher got them: at its rate, after any perturbation): the audio's identity.
        num_frames: T, frames of codes.
        rrl: relative reconstruction loss of the utterance.
        speaker, text: from the supervisions, None when unknown.
        codes: (T, N) uint8.
        cut: the Lhotse cut as JSON.
    """

    cut_id: str
    recording_id: str
    channel: int
    start: float
    duration: float
    speed: float
    num_samples: int
    num_frames: int
    rrl: float
    speaker: str | None
    text: str | None
    codes: np.ndarray
    cut: str


COLUMNS = tuple(IndexRow.__annotations__)
_INTEGER_LIMITS = {"channel": 2**31, "num_samples": 2**63, "num_frames": 2**31}
_REALS = ("start", "duration", "speed", "rrl")
_TEXTS = {"cut_id": False, "recording_id": False, "cut": False, "speaker": True, "text": True}


def codes_type(num_codebooks: int) -> pa.DataType:
    """Arrow type of one row's codes: `list<fixed_size_list<uint8>[num_codebooks]>`."""
    # Entries that cannot be null need no definition levels, and say so to readers.
    frame = pa.list_(pa.field("element", pa.uint8(), nullable=False), num_codebooks)
    return pa.list_(pa.field("element", frame, nullable=False))


def table_schema(num_codebooks: int) -> pa.Schema:
    """Columns of an index table, in file order."""
    types = {
        "cut_id": pa.string(),
        "recording_id": pa.string(),
        "channel": pa.int32(),
        "start": pa.float64(),
        "duration": pa.float64(),
        "speed": pa.float64(),
        "num_samples": pa.int64(),
        "num_frames": pa.int32(),
        "rrl": pa.float32(),
        "speaker": pa.string(),
        "text": pa.string(),
        "codes": codes_type(num_codebooks),
        "cut": pa.string(),
    }
    return pa.schema([pa.field(name, types[name], nullable=name in {"speaker", "text"}) for name in COLUMNS])


def rows_to_arrow(rows: Sequence[IndexRow], contract: TableContract) -> pa.Table:
    """Check the rows and turn them into one Arrow table.

    Raises:
        TableError: a row does not fit the columns or the contract, or a cut id comes twice; names the cut.
    """
    seen: set[str] = set()
    for row in rows:
        _check_row(row, contract)
        if row["cut_id"] in seen:
            raise TableError(f"cut {row['cut_id']!r}: twice in one shard; cut ids must be unique, rename one")
        seen.add(row["cut_id"])
    schema = table_schema(contract.num_codebooks)
    columns = [
        _codes_column(rows, contract.num_codebooks)
        if column.name == "codes"
        else pa.array([row[column.name] for row in rows], column.type)  # type: ignore[literal-required]
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def to_parquet(table: pa.Table, metadata: Mapping[bytes, str]) -> bytes:
    """One Parquet file with one row group, deterministic, `metadata` as key-value pairs of its footer."""
    sink = pa.BufferOutputStream()
    has_codes = "codes" in table.schema.names
    leaves = [CODES_LEAF if name == "codes" else name for name in table.schema.names]
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        # Codes hardly compress at any level; text gains from a high one and is small.
        compression_level={leaf: 9 if leaf == CODES_LEAF else 19 for leaf in leaves},
        use_dictionary=[name for name in ("speaker", "error", "stage") if name in table.schema.names],
        # Measured on 130 random rows of 134 x 8 codes: 1.004 bytes per index; dictionary 1.008, plain 1.34.
        column_encoding={CODES_LEAF: "BYTE_STREAM_SPLIT"} if has_codes else None,
        # Lets a query for the worst or longest utterances skip files.
        write_statistics=[name for name in ("duration", "rrl") if name in table.schema.names],
        # Finds flipped bits, which neither the footer nor zstd notices.
        write_page_checksum=True,
        # Version 2 pages leave the list levels uncompressed: 0.25 bytes per index more.
        data_page_version="1.0",
    ) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        # Into the footer only: in the schema it would be stored a second time, base64-coded.
        writer.add_key_value_metadata({key.decode(): value for key, value in metadata.items()})
    return sink.getvalue().to_pybytes()


def open_parquet(data: bytes, *, where: str) -> pq.ParquetFile:
    """The file's footer, read. Raises `TableError`, naming `where`, for a truncated or foreign file."""
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise damaged(where, error) from error


def read_columns(file: pq.ParquetFile, columns: Sequence[str] | None, *, where: str) -> pa.Table:
    """Some or all columns. Raises `TableError`, naming `where`, for damaged pages or unknown columns."""
    unknown = sorted(set(columns or ()) - set(file.schema_arrow.names))
    if unknown:
        raise TableError(f"{where}: no columns {unknown}; it has {file.schema_arrow.names}")
    try:
        return file.read(columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError) as error:
        raise damaged(where, error) from error


def damaged(where: str, error: Exception) -> TableError:
    """The error for a file that is not whole Parquet."""
    return TableError(f"{where}: a truncated or corrupt Parquet file ({error}); {EXTRACT_AGAIN}")


def stored_contract(metadata: Mapping[bytes, bytes] | None, *, where: str) -> TableContract:
    """The contract in a file's key-value metadata. Raises `TableError` when there is none."""
    text = (metadata or {}).get(CONTRACT_KEY)
    if text is None:
        raise TableError(f"{where}: not of an index table (no {CONTRACT_KEY.decode()} in it); move it away")
    return TableContract.from_json(text.decode(), where=where)


def split_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All codes of a `codes` column as one (sum T, N) uint8 array, and its rows' (rows + 1,) offsets."""
    lists = column.combine_chunks()
    flat_FN = lists.values.flatten().to_numpy().reshape(-1, column.type.value_type.list_size)
    return flat_FN, lists.offsets.to_numpy()


def arrow_to_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries; `codes` as (T, N) uint8 views of one array, without copying."""
    scalars = table.drop_columns(["codes"]) if "codes" in table.schema.names else table
    columns = [column.to_pylist() for column in scalars.columns]
    codes: tuple[np.ndarray, np.ndarray] | None = None
    if "codes" in table.schema.names:
        codes = split_codes(table["codes"])
    for index in range(table.num_rows):
        row = {name: column[index] for name, column in zip(scalars.schema.names, columns, strict=True)}
        if codes is not None:
            row["codes"] = codes[0][codes[1][index] : codes[1][index + 1]]
        yield row


def _codes_column(rows: Sequence[IndexRow], num_codebooks: int) -> pa.Array:
    lengths = np.fromiter((len(row["codes"]) for row in rows), dtype=np.int64, count=len(rows))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    if offsets[-1] >= 2**31:
        raise TableError(f"{offsets[-1]} frames are more than one shard holds (2**31); use smaller shards")
    empty = np.empty((0, num_codebooks), dtype=np.uint8)
    flat_FN = np.concatenate([empty, *(row["codes"] for row in rows)])
    kind = codes_type(num_codebooks)
    frames = pa.FixedSizeListArray.from_arrays(pa.array(flat_FN.reshape(-1)), type=kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), frames, type=kind)


def _check_row(row: Mapping[str, Any], contract: TableContract) -> None:
    name = f"cut {row.get('cut_id')!r}"
    if set(row) != set(COLUMNS):
        raise TableError(f"{name}: a row has the keys {sorted(row)}; it needs exactly {sorted(COLUMNS)}")
    for key, optional in _TEXTS.items():
        if not (isinstance(row[key], str) or (optional and row[key] is None)):
            raise TableError(f"{name}: {key} must be text{' or None' if optional else ''}, got {row[key]!r}")
    for key, limit in _INTEGER_LIMITS.items():
        if not isinstance(row[key], int | np.integer) or not 0 <= row[key] < limit:
            raise TableError(f"{name}: {key} must be a whole number from 0 below {limit}, got {row[key]!r}")
    for key in _REALS:
        if not isinstance(row[key], int | float | np.number) or not math.isfinite(row[key]):
            raise TableError(
                f"{name}: {key} must be a finite number, got {row[key]!r}; leave this cut out and "
                "record it in the failures table"
            )
    codes = row["codes"]
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8:
        raise TableError(
            f"{name}: codes must be a uint8 array, got {getattr(codes, 'dtype', type(codes).__name__)}"
        )
    if codes.ndim != 2 or codes.shape[1] != contract.num_codebooks or len(codes) != row["num_frames"]:
        wanted = f"({row['num_frames']}, {contract.num_codebooks})"
        raise TableError(f"{name}: codes have shape {codes.shape}, num_frames and the contract say {wanted}")
    if contract.codebook_size < 256 and codes.size and int(codes.max()) >= contract.codebook_size:
        raise TableError(
            f"{name}: code {codes.max()} does not exist in codebooks of {contract.codebook_size}"
        )
