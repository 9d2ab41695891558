"""The index table: a folder of Parquet files, one per shard. The existence of a file is its commit."""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ContractError, ObjectMissingError, TableError
from mvqkd.storage.footer import TAIL_BYTES
from mvqkd.storage.location import Location
from mvqkd.storage.parquet import (
    CONTRACT_KEY,
    EXTRACT_AGAIN,
    columns_of,
    damaged,
    open_parquet,
    payload_bytes,
    read_columns,
    stored_contract,
    to_parquet,
)
from mvqkd.storage.rows import (
    TableRow,
    arrow_to_rows,
    check_columns,
    check_row_matches,
    rows_to_arrow,
    table_schema,
)
from mvqkd.storage.shard_summary import (
    SUMMARY_COLUMNS,
    SUMMARY_KEY,
    ShardSummary,
    complete,
    footer_text,
    footer_values,
    summarize_rows,
)
from mvqkd.storage.strict_json import parse_json

if TYPE_CHECKING:
    import pyarrow.dataset

TABLE_FILE = "table.json"
SHARD_SUFFIX = ".parquet"
_MAX_NAMED_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """What `IndexTable.write_shard` did.

    Attributes:
        committed: whether it committed the shard.
        summary: of what stands there now.
        num_bytes: that were written.
    """

    committed: bool
    summary: ShardSummary
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class IndexTable:
    """An index table at a location; build it with `create` or `open`. Picklable, opens files lazily."""

    location: Location
    contract: TableContract

    @classmethod
    def create(cls, location: Location, contract: TableContract) -> "IndexTable":
        """Start a table or continue one of the same contract.

        Raises:
            ContractError: the folder holds a table of another contract.
            StorageError: the place cannot be written.
        """
        location.sweep()
        content = {"contract": json.loads(contract.to_json()), "contract_sha256": contract.digest()}
        if not location.write_once(
            TABLE_FILE, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
        ):
            contract.require_same(cls.open(location).contract, where=location.full_url(TABLE_FILE))
        return cls(location=location, contract=contract)

    @classmethod
    def open(cls, location: Location) -> "IndexTable":
        """Open a table. Raises `TableError` when there is none, `ContractError` for a bad contract."""
        where = location.full_url(TABLE_FILE)
        try:
            data = location.read_bytes(TABLE_FILE)
        except ObjectMissingError as error:
            raise TableError(f"{where}: no index table here; check the url or run extract first") from error
        try:
            content = parse_json(data)
        except ValueError as error:
            raise TableError(f"{where}: not JSON ({error}); delete it and run extract again") from error
        if not isinstance(content, dict) or not {"contract", "contract_sha256"} <= set(content):
            raise ContractError(f"{where}: holds no table contract; delete it and run extract again")
        contract = TableContract.from_json(json.dumps(content["contract"]), where=where)
        if content["contract_sha256"] != contract.digest():
            raise ContractError(
                f"{where}: the contract was changed after it was written (contract_sha256 is of another one); "
                "take back the change, or delete the file and run extract again"
            )
        return cls(location=location, contract=contract)

    def shard_path(self, name: str) -> str:
        """The object of a shard, relative to the table. Raises `TableError` for unsuitable names."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]*", name):
            raise TableError(
                f"{self.location.url}: shard name {name!r}: use letters, digits and -_.=, a letter or digit first; "
                "a file of such a name in the table's folder is no shard, move it away"
            )
        return name + SHARD_SUFFIX

    def committed(self) -> set[str]:
        """Names of the committed shards, by one listing."""
        return set(shard_names(self.location.list()))

    def is_committed(self, name: str) -> bool:
        """Whether this shard is there."""
        return self.location.exists(self.shard_path(name))

    def write_shard(self, name: str, rows: Iterable[TableRow]) -> WrittenShard:
        """Commit a shard; a committed one of this name is left alone.

        The file is built and read back in memory first. The same rows always give the same bytes.

        Returns:
            Whether this call committed it, and the summary of what stands there.

        Raises:
            TableError: a row does not fit; nothing is written. Or the committed one is damaged.
            StorageError: the place refused the object; nothing is committed.
        """
        path, where = self.shard_path(name), self._url(name)
        table = rows_to_arrow(list(rows), self.contract)
        summary = summarize_rows(table, self.contract, codes_bytes=0, where=where)
        metadata: dict[bytes, str | Callable[[int], str]] = {
            CONTRACT_KEY: self.contract.to_json(),
            SUMMARY_KEY: lambda pages_end: footer_text(summary, pages_end, self.contract),
        }
        data = to_parquet(table, metadata)
        written = open_parquet(data, where=where).metadata
        assert written.num_rows == table.num_rows, f"{path}: Parquet lost rows"
        if not self.location.write_once(path, data):
            return WrittenShard(committed=False, summary=self.summary_of(name), num_bytes=0)
        summary = replace(summary, codes_bytes=payload_bytes(written, self.contract, where=where))
        return WrittenShard(committed=True, summary=summary, num_bytes=len(data))

    def summary_of(self, name: str) -> ShardSummary:
        """The summary of a shard: of its footer, a few kB, or for one of an earlier version of its columns.

        Raises:
            TableError, ContractError, StorageError: as `read_shard`.
        """
        where = self._url(name)
        with self._opened(name) as file:
            codes_bytes = payload_bytes(file.metadata, self.contract, where=where)
            values = footer_values(file.metadata, where=where)
            if values is None:
                table = read_columns(file, SUMMARY_COLUMNS[self.contract.payload], where=where)
                return summarize_rows(table, self.contract, codes_bytes=codes_bytes, where=where)
            return complete(
                values,
                self.contract,
                codes_bytes=codes_bytes,
                read=lambda columns: read_columns(file, columns, where=where),
                where=where,
            )

    def find(self, name: str) -> ShardSummary | None:
        """The summary of a shard, None when it is not committed; one request. Raises as `summary_of`."""
        try:
            return self.summary_of(name)
        except TableError as error:
            if isinstance(error.__cause__, ObjectMissingError):
                return None
            raise

    def read_shard(self, name: str, *, columns: Sequence[str] | None = None) -> pa.Table:
        """A shard as an Arrow table; all columns by default, which is one request.

        Of a shard far away, no more than the footer and the named columns is fetched.

        Raises:
            TableError: no such shard, truncated or corrupt file, unknown column.
            ContractError: the file has another contract than the table, or codes are asked of a table of embeddings.
            StorageError: the store broke off.
        """
        check_columns(columns or (), self.contract, where=self.location.url)
        with self._opened(name, whole=columns is None) as file:
            footer_values(file.metadata, where=self._url(name))  # finds a footer of another number of rows
            return read_columns(file, columns, where=self._url(name))

    @contextmanager
    def _opened(self, name: str, *, whole: bool = False) -> Iterator[pq.ParquetFile]:
        """A shard's file, with its footer read and checked. Raises as `read_shard`."""
        path, where = self.shard_path(name), self._url(name)
        with ExitStack() as stack:
            try:
                source: bytes | io.RawIOBase
                if whole:
                    source = self.location.read_bytes(path)
                else:
                    source = stack.enter_context(self.location.open_unbuffered(path, tail=TAIL_BYTES))
            except ObjectMissingError as error:
                raise TableError(f"{where}: no such shard in this table; run extract to make it") from error
            file = open_parquet(source, where=where)
            self.contract.require_same(stored_contract(file.metadata.metadata, where=where), where=where)
            if not columns_of(file, where=where).equals(table_schema(self.contract)):
                raise TableError(f"{where}: other columns than an index table has; {EXTRACT_AGAIN}")
            yield file

    def iter_rows(
        self, *, columns: Sequence[str] | None = None, shards: Iterable[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries (see `storage.rows`), shard by shard; one shard at a time is in memory.

        Args:
            columns, shards: those to read; all columns, and all committed shards by name, by default.
        """
        for name in sorted(self.committed()) if shards is None else shards:
            yield from arrow_to_rows(self.read_shard(name, columns=columns))

    def dataset(self) -> "pyarrow.dataset.Dataset":
        """All committed shards as a `pyarrow.dataset`; reads every footer to refuse foreign files.

        Raises `TableError` for a damaged file, `ContractError` for one of another contract.
        """
        # Imports pandas where there is one, seconds that extraction and training do not need.
        import pyarrow.dataset as pads

        names = sorted(self.committed())
        dataset = pads.dataset(
            [self.location.full_path(self.shard_path(name)) for name in names],
            schema=table_schema(self.contract),
            filesystem=self.location.arrow_filesystem(),
            format="parquet",
        )
        for name, fragment in zip(names, dataset.get_fragments(), strict=True):
            where = self._url(name)
            try:
                metadata = fragment.metadata.metadata
            except (pa.ArrowException, OSError) as error:
                raise damaged(where, error) from error
            self.contract.require_same(stored_contract(metadata, where=where), where=where)
        return dataset

    def verify(self) -> int:
        """Read every shard whole and check it; returns the number of rows.

        Raises:
            TableError: names each bad file with its problem.
        """
        num_rows, problems = 0, []
        for name in sorted(self.committed()):
            try:
                num_rows += self._verify_shard(name)
            except (TableError, ContractError) as error:
                problems.append(str(error))
        if problems:
            named = "\n".join(problems[:_MAX_NAMED_PROBLEMS])
            raise TableError(f"{self.location.url}: {len(problems)} bad shard files\n{named}")
        return num_rows

    def _verify_shard(self, name: str) -> int:
        where = self._url(name)
        table = self.read_shard(name)
        try:
            table.validate(full=True)
        except pa.ArrowException as error:
            raise damaged(where, error) from error
        stored = self.summary_of(name)
        if stored != summarize_rows(table, self.contract, codes_bytes=stored.codes_bytes, where=where):
            raise TableError(f"{where}: the summary in its footer is not that of its rows; {EXTRACT_AGAIN}")
        return table.num_rows

    def _url(self, name: str) -> str:
        return self.location.full_url(self.shard_path(name))


def shard_names(sizes: Mapping[str, int]) -> list[str]:
    """The shards among the objects of a table, sorted. Hidden files are none, as for all tools that read tables."""
    names = (
        path for path in sizes if path.endswith(SHARD_SUFFIX) and "/" not in path and path[0] not in "._"
    )
    return sorted(name.removesuffix(SHARD_SUFFIX) for name in names)


__all__ = ["IndexTable", "WrittenShard", "check_row_matches", "shard_names"]
