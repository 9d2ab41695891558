"""Parquet files as bytes: the same bytes for the same table, footers and key-value pairs, damage found and named."""

import io
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import TableError
from mvqkd.storage.footer import MAGIC, FooterError, read_footer, sealed
from mvqkd.storage.payloads import STORED

CONTRACT_KEY = b"mvqkd.contract"
EXTRACT_AGAIN = "delete this object and run extract again, which computes only this shard"

# What pyarrow raises for files that are not whole: names that are not UTF-8 come as Python's own error, sizes that
# cannot be as MemoryError or OverflowError.
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError, OverflowError)


def to_parquet(table: pa.Table, metadata: Mapping[bytes, str | Callable[[int], str]]) -> bytes:
    """One Parquet file with one row group, deterministic, `metadata` as key-value pairs of its footer.

    A value may be a function of the byte where the pages end (`end_of_pages`), which depends on the table's content.
    """
    names = table.schema.names
    payloads = {name: STORED[name] for name in names if name in STORED}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        # Text gains from a high level and is small.
        compression_level={name: 19 for name in names if name not in payloads}
        | {payload.leaf: payload.zstd_level for payload in payloads.values()},
        use_dictionary=[name for name in ("speaker", "error", "stage") if name in names],
        column_encoding={payload.leaf: payload.encoding for payload in payloads.values()} or None,
        # Lets a query for the worst or longest utterances skip files.
        write_statistics=[name for name in ("duration", "rrl") if name in names],
        # Finds flipped bits, which neither the footer nor zstd notices.
        write_page_checksum=True,
        # Version 2 pages leave the list levels uncompressed: 0.25 bytes per index more.
        data_page_version="1.0",
    ) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        # Into the footer only: in the schema it would be stored a second time, base64-coded.
        pairs = {
            key.decode(): value if isinstance(value, str) else value(sink.tell())
            for key, value in metadata.items()
        }
        writer.add_key_value_metadata(pairs)
    return sealed(memoryview(sink.getvalue()))


def open_parquet(source: bytes | io.RawIOBase, *, where: str) -> pq.ParquetFile:
    """The file's footer, read.

    Args:
        source: the whole file, or one that can be sought in. Of that, only the footer and the columns that are
            read later are fetched; it must stay open until then.

    Raises:
        TableError: it is truncated or no Parquet; names `where`.
        StorageError: the store broke off.
    """
    try:
        ending = read_footer(io.BytesIO(source) if isinstance(source, bytes) else source)
        return pq.ParquetFile(
            pa.BufferReader(source) if isinstance(source, bytes) else source,
            metadata=pq.read_metadata(pa.BufferReader(ending)),
            page_checksum_verification=True,
        )
    except (FooterError, *_DAMAGE) as error:
        raise damaged(where, error) from error


def columns_of(file: pq.ParquetFile, *, where: str) -> pa.Schema:
    """The file's columns as Arrow types. Raises `TableError`, naming `where`, for a damaged footer."""
    try:
        return file.schema_arrow
    except _DAMAGE as error:
        raise damaged(where, error) from error


def read_columns(file: pq.ParquetFile, columns: Sequence[str] | None, *, where: str) -> pa.Table:
    """Some or all columns. Raises `TableError`, naming `where`, for damaged pages or unknown columns."""
    names = columns_of(file, where=where).names
    unknown = sorted(set(columns or ()) - set(names))
    if unknown:
        raise TableError(f"{where}: no columns {unknown}; it has {names}")
    try:
        table = file.read(columns=list(columns) if columns is not None else None)
    except _DAMAGE as error:
        raise damaged(where, error) from error
    # pyarrow takes a page that it does not understand for the end of the column.
    if table.num_rows != file.metadata.num_rows:
        raise damaged(where, f"{table.num_rows} rows instead of {file.metadata.num_rows}")
    return table


def damaged(where: str, problem: object) -> TableError:
    """The error for a file that is not whole Parquet."""
    return TableError(f"{where}: a truncated or corrupt Parquet file ({problem}); {EXTRACT_AGAIN}")


def stored_contract(metadata: Mapping[bytes, bytes] | None, *, where: str) -> TableContract:
    """The contract in a file's key-value metadata. Raises `TableError` when there is none."""
    text = (metadata or {}).get(CONTRACT_KEY)
    if text is None:
        raise TableError(f"{where}: not of an index table (no {CONTRACT_KEY.decode()} in it); move it away")
    return TableContract.from_json(text.decode(errors="replace"), where=where)


def compressed_bytes(metadata: pq.FileMetaData, leaf: str | None = None, *, where: str) -> int:
    """What a leaf column, or all of them, takes in the file. Raises `TableError` for a damaged footer."""
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    try:
        return sum(chunk.total_compressed_size for chunk in chunks if leaf in {None, chunk.path_in_schema})
    except _DAMAGE as error:
        raise damaged(where, error) from error


def payload_bytes(metadata: pq.FileMetaData, contract: TableContract, *, where: str) -> int:
    """What the codes or embeddings take in the file. Raises as `compressed_bytes`."""
    return compressed_bytes(metadata, STORED[contract.payload].leaf, where=where)


def end_of_pages(metadata: pq.FileMetaData, *, where: str) -> int:
    """The byte where the pages of a file of ours end: they follow the magic without gaps."""
    return len(MAGIC) + compressed_bytes(metadata, where=where)
