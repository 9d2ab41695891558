"""Rows of an index table, checked, to and from Arrow: the columns that say which audio it is, and the payload.

Shape suffixes: F frames of all rows, W numbers of a frame.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from mvqkd.storage.contract import CODES, EMBEDDINGS, TableContract
from mvqkd.storage.errors import StaleCodesError, TableError
from mvqkd.storage.payloads import STORED, check_payload, payload_column, payload_type, split_payload


class IndexRow(TypedDict):
    """One cut of an index table of codes.

    Keys:
        cut_id, recording_id, channel, start (s), duration (s), speed (perturbation factor, 1.0 normally),
        num_samples (as the teacher got them: at its rate, after any perturbation): the audio's identity.
        num_frames: T, frames of codes.
        rrl: relative reconstruction loss of the utterance; `RRL_UNKNOWN` for imported codes, whose embeddings nobody
            has.
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


RRL_UNKNOWN = -1.0
"""No loss is below 0, and a table has a number for each of its rows."""


class EmbeddingsRow(TypedDict):
    """One cut of an index table of embeddings: as `IndexRow`, without the `rrl` that a quantizer has.

    Keys:
        embeddings: (T, D) float16, in the place of `codes`.
    """

    cut_id: str
    recording_id: str
    channel: int
    start: float
    duration: float
    speed: float
    num_samples: int
    num_frames: int
    speaker: str | None
    text: str | None
    embeddings: np.ndarray
    cut: str


TableRow = IndexRow | EmbeddingsRow
COLUMNS = tuple(IndexRow.__annotations__)
_COLUMNS = {CODES: COLUMNS, EMBEDDINGS: tuple(EmbeddingsRow.__annotations__)}
# Shorter than one sample at 48 kHz, longer than what a decimal round trip of a manifest changes.
TIME_TOLERANCE_S = 1e-5
SPEED_TOLERANCE = 1e-6
_INTEGER_LIMITS = {"channel": 2**31, "num_samples": 2**63, "num_frames": 2**31}
_REALS = ("start", "duration", "speed", "rrl")  # as far as the row has them
_TEXTS = {"cut_id": False, "recording_id": False, "cut": False, "speaker": True, "text": True}


def table_schema(contract: TableContract) -> pa.Schema:
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
        "cut": pa.string(),
        contract.payload: payload_type(contract),
    }
    names = _COLUMNS[contract.payload]
    return pa.schema([pa.field(name, types[name], nullable=name in {"speaker", "text"}) for name in names])


def rows_to_arrow(rows: Sequence[TableRow], contract: TableContract) -> pa.Table:
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
    schema = table_schema(contract)
    columns = [
        payload_column([row[column.name] for row in rows], contract)  # type: ignore[literal-required]
        if column.name == contract.payload
        else pa.array([row[column.name] for row in rows], column.type)  # type: ignore[literal-required]
        for column in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def arrow_to_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries; `codes` as (T, N) uint8, `embeddings` as (T, D) float16 views of one array, without
    copying."""
    payloads = [name for name in table.schema.names if name in STORED]
    scalars = table.drop_columns(payloads)
    columns = [column.to_pylist() for column in scalars.columns]
    split = {name: split_payload(table[name]) for name in payloads}
    for index in range(table.num_rows):
        row = {name: column[index] for name, column in zip(scalars.schema.names, columns, strict=True)}
        for name, (values_FW, offsets) in split.items():
            row[name] = values_FW[offsets[index] : offsets[index + 1]]
        yield row


def check_columns(columns: Sequence[str], contract: TableContract, *, where: str) -> None:
    """Raise `ContractError`, naming `where`, when codes are asked of a table of embeddings, or the other way round."""
    for name in columns:
        if name in STORED:
            contract.require_payload(name, where=where)


def check_row_matches(
    row: Mapping[str, Any],
    *,
    recording_id: str,
    channel: int,
    start: float,
    duration: float,
    speed: float,
    num_samples: int,
) -> None:
    """Check that audio about to be paired with a row's codes is the audio the codes were computed from.

    Args:
        row: of an index table, with at least `cut_id` and the key columns.
        recording_id, channel: the audio's source.
        start, duration: seconds in the recording.
        speed: perturbation factor, 1.0 when there is none.
        num_samples: at the teacher's sample rate, after any perturbation.

    Raises:
        StaleCodesError: names the cut, the first differing field and both values.
    """
    now = {"recording_id": recording_id, "channel": channel, "speed": speed, "start": start,
           "duration": duration, "num_samples": num_samples}  # fmt: skip
    tolerances = {"speed": SPEED_TOLERANCE, "start": TIME_TOLERANCE_S, "duration": TIME_TOLERANCE_S}
    for key, value in now.items():
        then = row[key]
        same = abs(then - value) <= tolerances[key] if key in tolerances else then == value
        if not same:
            raise StaleCodesError(
                f"cut {row['cut_id']!r}: {key} is {value!r} now, but was {then!r} when its codes were made; "
                "train on the cuts of the table, or perturb and trim before extraction and extract again"
            )


def _check_row(row: Mapping[str, Any], contract: TableContract) -> None:
    name = f"cut {row.get('cut_id')!r}"
    columns = _COLUMNS[contract.payload]
    if set(row) != set(columns):
        raise TableError(f"{name}: a row has the keys {sorted(row)}; it needs exactly {sorted(columns)}")
    for key, optional in _TEXTS.items():
        if not (isinstance(row[key], str) or (optional and row[key] is None)):
            raise TableError(f"{name}: {key} must be text{' or None' if optional else ''}, got {row[key]!r}")
    for key, limit in _INTEGER_LIMITS.items():
        if not isinstance(row[key], int | np.integer) or not 0 <= row[key] < limit:
            raise TableError(f"{name}: {key} must be a whole number from 0 below {limit}, got {row[key]!r}")
    for key in _REALS:
        if key in row and not (isinstance(row[key], int | float | np.number) and math.isfinite(row[key])):
            raise TableError(
                f"{name}: {key} must be a finite number, got {row[key]!r}; leave this cut out and "
                "record it in the failures table"
            )
    check_payload(name, row[contract.payload], row["num_frames"], contract)
