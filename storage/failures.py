"""The failures table: what could not be extracted, and why.

One small Parquet object per shard in `_failures/` (dataset tools skip folders that start with `_`). Parquet
rather than JSON lines, because the tools that query the index table then read it in the same way, typed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import pyarrow as pa

from mvqkd.storage.errors import ObjectMissingError, TableError
from mvqkd.storage.location import Location
from mvqkd.storage.parquet import open_parquet, read_columns, to_parquet
from mvqkd.storage.threads import READING_THREADS, map_in_order

FAILURES_FOLDER = "_failures"
_SUFFIX = ".parquet"
_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("cut_id", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One cut, or one whole shard, that could not be extracted.

    Attributes:
        shard: the shard's name.
        cut_id: the cut, or None when the whole shard failed.
        stage: where it happened, such as "load", "teacher" or "write".
        error: the exception's class name.
        message: the exception's text.
        attempts: how often it was tried.
    """

    shard: str
    cut_id: str | None
    stage: str
    error: str
    message: str
    attempts: int


def write_failures(table: Location, shard: str, failures: Sequence[Failure]) -> None:
    """Record exactly these failures of a shard; none removes its record.

    Call it before `IndexTable.write_shard`: a job killed between the two does the shard again, while a
    committed shard has its final record, and that of an earlier whole-shard failure is gone.
    """
    folder = table.join(FAILURES_FOLDER)
    if not failures:
        folder.remove(shard + _SUFFIX)
        return
    for failure in failures:
        if failure.shard != shard:
            raise ValueError(
                f"a failure of shard {failure.shard!r} was given for shard {shard!r}; group them by shard"
            )
    ordered = sorted(failures, key=lambda failure: (failure.cut_id or "", failure.stage))
    table_of_failures = pa.Table.from_pylist([asdict(failure) for failure in ordered], schema=_SCHEMA)
    folder.replace(shard + _SUFFIX, to_parquet(table_of_failures, {}))


def shards_with_failures(table: Location) -> set[str]:
    """Names of the shards that have records, by a listing alone. One that is not committed was set aside."""
    names = table.names(FAILURES_FOLDER)
    return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}


def read_failures(table: Location) -> list[Failure]:
    """All recorded failures of the index table at this location, ordered by shard and cut.

    Raises:
        TableError: a record is damaged; names it.
    """
    folder = table.join(FAILURES_FOLDER)

    def read(name: str) -> list[Failure]:
        where = folder.full_url(name)
        try:
            data = folder.read_bytes(name)
        except ObjectMissingError:
            return []  # removed since the listing, by a worker that did the shard after all
        records = read_columns(open_parquet(data, where=where), None, where=where)
        if records.schema != _SCHEMA:
            raise TableError(f"{where}: not a record of failures; delete it")
        return [Failure(**record) for record in records.to_pylist()]

    names = [name for name in folder.list() if name.endswith(_SUFFIX)]
    return list(chain.from_iterable(map_in_order(read, names, threads=READING_THREADS)))
