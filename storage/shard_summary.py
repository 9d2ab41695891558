"""What one shard holds, in sums: they add up to the figures of a table, and lie in the shard's footer.

Shape suffixes: F frames, N codebooks, K entries of a codebook.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mvqkd.storage.contract import CODES, EMBEDDINGS, TableContract
from mvqkd.storage.errors import TableError
from mvqkd.storage.packed_counts import pack_counts, unpack_counts
from mvqkd.storage.parquet import EXTRACT_AGAIN, damaged, end_of_pages
from mvqkd.storage.payloads import checked_payload
from mvqkd.storage.strict_json import canonical_json, parse_json

SUMMARY_KEY = b"mvqkd.summary"
SUMMARY_COLUMNS = {
    CODES: ("cut_id", "duration", "num_frames", "rrl", "speaker", CODES),
    EMBEDDINGS: ("duration", "num_frames", "speaker"),
}
"""What a summary is computed from, by what the table holds."""
# Of embeddings there are none: they stand in no footer, and are zero.
_OF_CODES = ("rrl_sum", "weighted_rrl_sum", "worst_rrl", "worst_cut_id", "counts")
# The parts that can be large, and the columns they are computed from. In a footer they may cost this share of the
# payload; else they are left out of it and computed when they are asked for, from columns that are small then.
_PARTS = {"speaker_s": ("speaker", "duration"), "counts": (CODES, "num_frames")}
_PART_SHARE = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSummary:
    """Sums over the rows of a shard, or over those of several shards; `a + b` is the summary of both.

    Attributes:
        rows, frames: numbers of cuts and of frames of codes or embeddings.
        duration_s: of audio, in seconds.
        rrl_sum: over rows; `weighted_rrl_sum`: of rrl times frames. 0 of embeddings.
        worst_rrl, worst_cut_id: the row of the largest rrl, the first of equal ones; None without rows, or of
            embeddings.
        codes_bytes: of the column of codes or embeddings, as compressed in the file.
        speaker_s: seconds by speaker, over rows that have one.
        counts_NK: int64, how often each entry of each codebook is used; (0, 0) of embeddings.
    """

    rows: int
    frames: int
    duration_s: float
    rrl_sum: float
    weighted_rrl_sum: float
    worst_rrl: float | None
    worst_cut_id: str | None
    codes_bytes: int
    speaker_s: Mapping[str, float]
    counts_NK: np.ndarray

    @classmethod
    def empty(cls, contract: TableContract) -> "ShardSummary":
        """The summary of no rows."""
        return SummaryTotal(contract).total()

    def __add__(self, other: "ShardSummary") -> "ShardSummary":
        total = SummaryTotal(self.counts_NK.shape)
        total.add(self)
        total.add(other)
        return total.total()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardSummary) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # holds an array and a mapping

    def to_dict(self) -> dict[str, Any]:
        """JSON values: `counts_NK` packed as `counts`, shape and text."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "counts_NK"}
        return {**values, "speaker_s": dict(self.speaker_s), "counts": pack_counts(self.counts_NK)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "shard summary") -> "ShardSummary":
        """The summary `to_dict` gave; its `counts` may also be the array.

        Raises:
            TableError: anything else; names `where`.
        """
        try:
            plain = {item.name: values[item.name] for item in fields(cls) if item.name != "counts_NK"}
            if len(plain) + 1 != len(values):
                raise ValueError(f"the keys are {sorted(values)}")
            counts = values["counts"]
            return cls(**plain, counts_NK=counts if isinstance(counts, np.ndarray) else unpack_counts(counts))
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise TableError(f"{where}: not a summary of a shard ({error}); {EXTRACT_AGAIN}") from error


class SummaryTotal:
    """A sum of many summaries, without copying what it has at each step.

    Args:
        contract: of the table, or the shape (N, K) of the counts.
    """

    def __init__(self, contract: TableContract | tuple[int, ...]) -> None:
        shape = contract if isinstance(contract, tuple) else (contract.num_codebooks, contract.codebook_size)
        self._rows = self._frames = self._codes_bytes = 0
        self._duration_s = self._rrl_sum = self._weighted_rrl_sum = 0.0
        self._worst: tuple[float | None, str | None] = (None, None)
        self._speaker_s: defaultdict[str, float] = defaultdict(float)
        self._counts_NK = np.zeros(shape, dtype=np.int64)

    def add(self, summary: ShardSummary) -> None:
        """Add one. Raises ValueError for one of other codebooks."""
        if summary.counts_NK.shape != self._counts_NK.shape:
            raise ValueError(
                f"summaries of {summary.counts_NK.shape} and {self._counts_NK.shape} codebooks and entries"
            )
        self._rows += summary.rows
        self._frames += summary.frames
        self._codes_bytes += summary.codes_bytes
        self._duration_s += summary.duration_s
        self._rrl_sum += summary.rrl_sum
        self._weighted_rrl_sum += summary.weighted_rrl_sum
        rrl = summary.worst_rrl
        if rrl is not None and (self._worst[0] is None or rrl > self._worst[0]):
            self._worst = (rrl, summary.worst_cut_id)
        for speaker, seconds in summary.speaker_s.items():
            self._speaker_s[speaker] += seconds
        self._counts_NK += summary.counts_NK

    def total(self) -> ShardSummary:
        """The sum so far."""
        return ShardSummary(
            rows=self._rows,
            frames=self._frames,
            duration_s=self._duration_s,
            rrl_sum=self._rrl_sum,
            weighted_rrl_sum=self._weighted_rrl_sum,
            worst_rrl=self._worst[0],
            worst_cut_id=self._worst[1],
            codes_bytes=self._codes_bytes,
            speaker_s=dict(self._speaker_s),
            counts_NK=self._counts_NK.copy(),
        )


def summarize_rows(table: pa.Table, contract: TableContract, *, codes_bytes: int, where: str) -> ShardSummary:
    """The summary of a shard's rows.

    Args:
        table: with at least `SUMMARY_COLUMNS`; embeddings are checked where they are there.
        codes_bytes: of the payload's column in its file.
        where: for messages.

    Raises:
        TableError: the payload does not fit the frames or the contract, or a figure is not finite.
    """
    durations, num_frames = _numbers(table, "duration"), _numbers(table, "num_frames")
    of_codes: dict[str, Any] = _nothing_of_codes()
    if contract.payload == CODES:
        of_codes = _of_codes(table, num_frames, contract, where=where)
    elif EMBEDDINGS in table.schema.names:
        checked_payload(table[EMBEDDINGS], num_frames, contract, where=where, remedy=EXTRACT_AGAIN)
    if not (np.isfinite(durations).all() and np.isfinite(of_codes["rrl_sum"])):
        raise TableError(f"{where}: a duration or an rrl that is no finite number; {EXTRACT_AGAIN}")
    values = {
        "rows": table.num_rows,
        "frames": int(num_frames.sum()),
        "duration_s": float(durations.sum()),
        "codes_bytes": codes_bytes,
        "speaker_s": _speaker_s(table),
    }
    return ShardSummary.from_dict({**values, **of_codes}, where=where)


def _nothing_of_codes() -> dict[str, Any]:
    """What a summary says of codes where there are none."""
    nothing = {"rrl_sum": 0.0, "weighted_rrl_sum": 0.0, "worst_rrl": None, "worst_cut_id": None}
    return {**nothing, "counts": np.zeros((0, 0), dtype=np.int64)}


def _of_codes(
    table: pa.Table, num_frames: np.ndarray, contract: TableContract, *, where: str
) -> dict[str, Any]:
    """What a summary says of codes; sums that are not finite where an rrl is not."""
    rrl = _numbers(table, "rrl").astype(np.float64)
    worst = int(rrl.argmax()) if table.num_rows else None
    return {
        "rrl_sum": float(rrl.sum()),
        "weighted_rrl_sum": float(rrl @ num_frames),
        "worst_rrl": None if worst is None else float(rrl[worst]),
        "worst_cut_id": None if worst is None else table["cut_id"][worst].as_py(),
        "counts": _counts_NK(table, contract, where=where),
    }


def footer_text(summary: ShardSummary, pages_end: int, contract: TableContract) -> str:
    """The summary as it lies in the footer of the file whose pages end at this byte."""
    values = {**summary.to_dict(), "pages_end": pages_end}
    del values["codes_bytes"]  # stands in the footer anyway
    if contract.payload != CODES:
        values = {name: value for name, value in values.items() if name not in _OF_CODES}
    limit = _PART_SHARE * summary.frames * contract.bytes_per_frame
    for part in _PARTS:
        if part in values and len(canonical_json(values[part])) > limit:
            del values[part]
    # Nothing else would notice a flipped bit in a footer.
    return canonical_json({**values, "crc32": _crc(values)})


def footer_values(metadata: pq.FileMetaData, *, where: str) -> dict[str, Any] | None:
    """What `footer_text` wrote, if there is such a thing and it is of these rows.

    Raises:
        TableError: the footer is damaged.
    """
    text = (metadata.metadata or {}).get(SUMMARY_KEY)
    if text is None:
        return None  # a file of an earlier version
    try:
        values = parse_json(text)
        if values.pop("crc32") != _crc(values):
            raise ValueError("checksum")
        pages_end, rows = values.pop("pages_end"), values["rows"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(where, f"the summary in its footer: {error}") from error
    if pages_end != end_of_pages(metadata, where=where):
        return None  # another program wrote other rows and kept what it did not know
    if rows != metadata.num_rows:
        raise damaged(where, f"{metadata.num_rows} rows, but {rows} were written")
    return values


def complete(
    values: dict[str, Any],
    contract: TableContract,
    *,
    codes_bytes: int,
    read: Callable[[Sequence[str]], pa.Table],
    where: str,
) -> ShardSummary:
    """The summary of `footer_values`, with the parts that were left out computed from the columns `read` gives.

    Raises:
        TableError: the columns are damaged, or the values are no summary of this contract.
    """
    if contract.payload != CODES:
        values = {**values, **_nothing_of_codes()}
    missing = [part for part in _PARTS if part not in values]
    table = read(sorted({name for part in missing for name in _PARTS[part]})) if missing else None
    computed: dict[str, Any] = {"codes_bytes": codes_bytes}
    if "speaker_s" in missing:
        computed["speaker_s"] = _speaker_s(table)
    if "counts" in missing:
        computed["counts"] = _counts_NK(table, contract, where=where)
    summary = ShardSummary.from_dict({**values, **computed}, where=where)
    if summary.counts_NK.shape != (contract.num_codebooks, contract.codebook_size):
        raise damaged(where, f"code counts of shape {summary.counts_NK.shape}")
    return summary


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers. Not by `to_numpy`, which imports pandas where it is installed, and takes a second for it."""
    return np.from_dlpack(table[name].combine_chunks())


def _speaker_s(table: pa.Table) -> dict[str, float]:
    speaker_s: defaultdict[str, float] = defaultdict(float)
    for speaker, seconds in zip(table["speaker"].to_pylist(), table["duration"].to_pylist(), strict=True):
        if speaker is not None:
            speaker_s[speaker] += seconds
    return dict(speaker_s)


def _counts_NK(table: pa.Table, contract: TableContract, *, where: str) -> np.ndarray:
    num_frames = _numbers(table, "num_frames")
    codes_FN = checked_payload(table[CODES], num_frames, contract, where=where, remedy=EXTRACT_AGAIN)
    counts = [np.bincount(codes_F, minlength=contract.codebook_size) for codes_F in codes_FN.T]
    return np.stack(counts).astype(np.int64)


def _crc(values: Mapping[str, Any]) -> int:
    return zlib.crc32(canonical_json(values).encode())
