"""An index table, or two, as a DuckDB database in memory: views of what people ask.

What shards know of themselves (hours, bytes, how often each code is used) comes from their footers, so those views
answer at once; the others read the columns that they need when they are asked, on all of DuckDB's threads. Tables in S3
are read through this program's own file system, with the credentials of the environment: DuckDB is told none.

Shape suffixes: N codebooks, K entries of a codebook.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mvqkd.storage.contract import CODES, TableContract
from mvqkd.storage.failures import FAILURES_FOLDER
from mvqkd.storage.location import Location
from mvqkd.storage.rows import table_schema
from mvqkd.storage.shard_summary import ShardSummary, SummaryTotal
from mvqkd.storage.sql_views import DRIFT_OF_CODES, DRIFT_OF_CUTS, SAME, VIEWS
from mvqkd.storage.table import IndexTable, shard_names
from mvqkd.storage.threads import READING_THREADS, map_in_order

if TYPE_CHECKING:
    import duckdb

SAME_CODES = ("teacher_fingerprint", "layer", "quantizer_id", "num_codebooks", "codebook_size")
"""Where two tables differ in one of these, their codes have nothing to do with each other."""


class SqlError(ValueError):
    """A query cannot be answered; the message is DuckDB's."""


def open_database(
    table: Location,
    other: Location | None = None,
    *,
    note: Callable[[int, int], None] = lambda done, total: None,
) -> "duckdb.DuckDBPyConnection":
    """A database with the views of a table, and under `other` those of another one.

    Args:
        table, other: the tables.
        note: called with the number of footers read, and of all.

    Raises:
        SqlError: DuckDB is missing.
        TableError, ContractError, StorageError: a table is not there, or a shard is damaged or foreign.
    """
    try:
        import duckdb
    except ImportError as error:
        raise SqlError("DuckDB is not installed; pip install 'mvqkd[sql]'") from error
    database = duckdb.connect(":memory:")
    places = {"main": table} if other is None else {"main": table, "other": other}
    tables = {schema: IndexTable.open(location) for schema, location in places.items()}
    names = {schema: shard_names(each.location.list()) for schema, each in tables.items()}
    done, total = 0, sum(map(len, names.values()))
    for schema, each in tables.items():
        if schema != "main":
            database.execute(f"CREATE SCHEMA {schema}")
        summaries: list[ShardSummary] = []
        for summary in map_in_order(each.summary_of, names[schema], threads=READING_THREADS):
            summaries.append(summary)
            done += 1
            note(done, total)
        _add(database, schema, each, names[schema], summaries)
    if other is not None:
        one, two = tables["main"].contract, tables["other"].contract
        comparable = all(getattr(one, name) == getattr(two, name) for name in SAME_CODES)
        if comparable:
            database.execute(DRIFT_OF_CODES)
        database.execute(DRIFT_OF_CUTS.format(same=SAME if comparable else "NULL::DOUBLE"))
    return database


def views(database: "duckdb.DuckDBPyConnection") -> list[tuple[str, str]]:
    """Names of tables and views, with what they are."""
    rows = database.execute(
        "SELECT schema_name, view_name, comment FROM duckdb_views() WHERE NOT internal "
        "UNION ALL SELECT schema_name, table_name, comment FROM duckdb_tables() WHERE comment IS NOT NULL ORDER BY 1, 2"
    ).fetchall()
    return [
        (name if schema == "main" else f"{schema}.{name}", comment or "") for schema, name, comment in rows
    ]


def run_query(
    database: "duckdb.DuckDBPyConnection", query: str
) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Names of the columns of a query's result, and its rows, which are fetched as they are asked for.

    Raises:
        SqlError: the query is wrong, or a file cannot be read; also from the rows.
    """
    import duckdb

    try:
        result = database.execute(query)
        columns = [column[0] for column in result.description or ()]
    except duckdb.Error as error:
        raise _explained(database, error) from error

    def rows() -> Iterator[tuple[Any, ...]]:
        while True:
            try:
                some = result.fetchmany(1000) if columns else []
            except duckdb.Error as error:
                raise _explained(database, error) from error
            if not some:
                return
            yield from some

    return columns, rows()


def _explained(database: "duckdb.DuckDBPyConnection", error: Exception) -> SqlError:
    import duckdb

    if isinstance(error, duckdb.CatalogException):
        names = ", ".join(name for name, _ in views(database))
        return SqlError(f"{error}\nthere are {names}")
    return SqlError(str(error))


def _add(
    database: "duckdb.DuckDBPyConnection",
    schema: str,
    table: IndexTable,
    names: Sequence[str],
    summaries: Sequence[ShardSummary],
) -> None:
    contract, location = table.contract, table.location
    contract.require_payload(CODES, where=location.url)
    if not location.is_local and not database.filesystem_is_registered("s3"):
        database.register_filesystem(location.filesystem)
    sizes = location.list()
    _fill(database, schema, "contract", "the teacher, layer and quantizer of these codes", {
        "field": list(_contract_of(contract)),
        "value": [str(value) for value in _contract_of(contract).values()],
    })  # fmt: skip
    _fill(database, schema, "usage", "how often each code occurs", _usage(contract, summaries))
    _fill(database, schema, "shards", "files, their cuts, hours and bytes", {
        "shard": pa.array(names, pa.string()),
        "cuts": pa.array([one.rows for one in summaries], pa.int64()),
        "frames": pa.array([one.frames for one in summaries], pa.int64()),
        "hours": pa.array([one.duration_s / 3600 for one in summaries], pa.float64()),
        "bytes": pa.array([sizes[table.shard_path(name)] for name in names], pa.int64()),
        "codes_bytes": pa.array([one.codes_bytes for one in summaries], pa.int64()),
        "mean_rrl": pa.array([_mean_rrl(one) for one in summaries], pa.float64()),
    })  # fmt: skip
    _create_utterances(database, schema, table, names)
    failures = location.join(FAILURES_FOLDER)
    records = [failures.full_url(name) for name in failures.list() if name.endswith(".parquet")]
    empty = "SELECT NULL::VARCHAR AS shard, NULL::VARCHAR AS cut_id, NULL::VARCHAR AS stage, NULL::VARCHAR AS error, "
    empty += "NULL::VARCHAR AS message, NULL::INTEGER AS attempts WHERE false"
    source = f"SELECT * FROM read_parquet({_list(records)})" if records else empty
    database.execute(f"CREATE VIEW {schema}.failures AS {source}")
    database.execute(f"COMMENT ON VIEW {schema}.failures IS 'cuts that have no codes, and why'")
    database.execute(VIEWS.format(s=schema, n=contract.num_codebooks))


def _create_utterances(
    database: "duckdb.DuckDBPyConnection", schema: str, table: IndexTable, names: Sequence[str]
) -> None:
    """All columns of all shards; a loss that nobody knows is null."""
    if names:
        files = _list([table.location.full_url(table.shard_path(name)) for name in names])
        columns = "* EXCLUDE (filename) REPLACE (CASE WHEN rrl >= 0 THEN rrl END AS rrl)"
        source = f"SELECT {columns}, parse_filename(filename, true) AS shard FROM "
        source += f"read_parquet({files}, filename = true)"
    else:
        empty = table_schema(table.contract).empty_table()
        database.register("_empty", empty)
        database.execute(f"CREATE TABLE {schema}.no_utterances AS SELECT *, ''::VARCHAR AS shard FROM _empty")
        database.unregister("_empty")
        source = f"SELECT * FROM {schema}.no_utterances"
    database.execute(f"CREATE VIEW {schema}.utterances AS {source}")
    database.execute(f"COMMENT ON VIEW {schema}.utterances IS 'one row for each cut, with its codes'")


def _usage(contract: TableContract, summaries: Iterable[ShardSummary]) -> dict[str, pa.Array]:
    total = SummaryTotal(contract)
    for summary in summaries:
        total.add(summary)
    counts_NK = total.total().counts_NK
    num_codebooks, size = counts_NK.shape
    # Shares of nothing are null, and so is what follows from them.
    shares = counts_NK / np.maximum(1, counts_NK.sum(axis=1, keepdims=True)) if counts_NK.any() else None
    return {
        "codebook": pa.array(np.repeat(np.arange(num_codebooks, dtype=np.int32), size)),
        "code": pa.array(np.tile(np.arange(size, dtype=np.int32), num_codebooks)),
        "times": pa.array(counts_NK.reshape(-1)),
        "share": pa.nulls(counts_NK.size, pa.float64()) if shares is None else pa.array(shares.reshape(-1)),
    }


def _fill(
    database: "duckdb.DuckDBPyConnection", schema: str, name: str, comment: str, columns: dict[str, Any]
) -> None:
    database.register("_filled", pa.table(columns))
    database.execute(f"CREATE TABLE {schema}.{name} AS SELECT * FROM _filled")
    database.execute(f"COMMENT ON TABLE {schema}.{name} IS '{comment}'")
    database.unregister("_filled")


def _contract_of(contract: TableContract) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(contract.to_json())
    return values


def _mean_rrl(summary: ShardSummary) -> float | None:
    known = summary.rows and summary.worst_rrl is not None and summary.worst_rrl >= 0
    return summary.rrl_sum / summary.rows if known else None


def _list(urls: Sequence[str]) -> str:
    """A list of texts in SQL."""
    quoted = (url.replace("'", "''") for url in urls)
    return "[" + ", ".join(f"'{url}'" for url in quoted) + "]"
