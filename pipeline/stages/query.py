"""Queries on index tables: one, or one after the other as they are typed."""

import sys
from typing import Any

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.show.progress import bar
from mvqkd.pipeline.show.sql_shell import json_values, shell, write_csv
from mvqkd.storage.location import Location


def query_stage(
    table: Location, other: Location | None, query: str | None, *, as_json: bool
) -> dict[str, Any]:
    """Answer a query, or those of standard input.

    Args:
        table, other: the tables.
        query: to be answered; None to read queries.
        as_json: whether the result is returned, which holds it in memory, and not printed.

    Raises:
        StageError: JSON of more than one query is asked for.
        SqlError: a query is wrong.
        TableError, ContractError, StorageError: a table cannot be read.
    """
    from mvqkd.storage.sql import open_database, run_query, views

    if as_json and query is None:
        raise StageError("--json: is of one result; give the query with --query")
    with bar("sql: footers", total=float("inf"), unit="shards") as shown:
        database = open_database(table, other, note=lambda done, total: shown.update(done, total=total))
    with database:
        if query is None:
            shell(lambda text: run_query(database, text), views(database), sys.stdin)
            return {}
        columns, rows = run_query(database, query)
        if as_json:
            return json_values(columns, rows)
        write_csv(columns, rows, sys.stdout)
    return {}
