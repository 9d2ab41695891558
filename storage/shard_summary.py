"""What one shard holds, in sums: they add up to the figures of a table, and lie in the shard's footer.

Shape suffixes: F frames, N codebooks, K entries of a codebook.
"""

import base64
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import TableError
from mvqkd.storage.parquet import EXTRACT_AGAIN, damaged, end_of_pages
from mvqkd.storage.payloads import CODES, checked_codes
from mvqkd.storage.strict_json import canonical_json, parse_json

SUMMARY_KEY = b"mvqkd.summary"
SUMMARY_COLUMNS = ("cut_id", "duration", "num_frames", "rrl", "speaker", CODES)
# The parts that can be large, and the columns they are computed from. In a footer they may cost this share of the
# codes; else they are left out of it and computed when they are asked for, from columns that are small then.
_PARTS = {"speaker_s": ("speaker", "duration"), "counts": (CODES, "num_frames")}
_PART_SHARE = 0.01
_INTEGERS = ("<u1", "<u2", "<u4", "<i8")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSummary:
    """Sums over the rows of a shard, or over those of several shards; `a + b` is the summary of both.

    Attributes:
        rows, frames: numbers of cuts and of frames of codes.
        duration_s: of audio, in seconds.
        rrl_sum: over rows; `weighted_rrl_sum`: of rrl times frames.
        worst_rrl, worst_cut_id: the row of the largest rrl, the first of equal ones; None without rows.
        codes_bytes: of the codes column, as compressed in the file.
        speaker_s: seconds by speaker, over rows that have one.
        counts_NK: int64, how often each entry of each codebook is used.
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
        return {**values, "speaker_s": dict(self.speaker_s), "counts": _pack(self.counts_NK)}

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
            return cls(**plain, counts_NK=counts if isinstance(counts, np.ndarray) else _unpack(counts))
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
        table: with at least `SUMMARY_COLUMNS`.
        codes_bytes: of the codes column in its file.
        where: for messages.

    Raises:
        TableError: the codes do not fit the frames or the codebooks, or a figure is not finite.
    """
    durations, rrl = _numbers(table, "duration"), _numbers(table, "rrl").astype(np.float64)
    num_frames = _numbers(table, "num_frames")
    if not (np.isfinite(durations).all() and np.isfinite(rrl).all()):
        raise TableError(f"{where}: a duration or an rrl that is no finite number; {EXTRACT_AGAIN}")
    worst = int(rrl.argmax()) if table.num_rows else None
    return ShardSummary(
        rows=table.num_rows,
        frames=int(num_frames.sum()),
        duration_s=float(durations.sum()),
        rrl_sum=float(rrl.sum()),
        weighted_rrl_sum=float(rrl @ num_frames),
        worst_rrl=None if worst is None else float(rrl[worst]),
        worst_cut_id=None if worst is None else table["cut_id"][worst].as_py(),
        codes_bytes=codes_bytes,
        speaker_s=_speaker_s(table),
        counts_NK=_counts_NK(table, contract, where=where),
    )


def footer_text(summary: ShardSummary, pages_end: int) -> str:
    """The summary as it lies in the footer of the file whose pages end at this byte."""
    values = {**summary.to_dict(), "pages_end": pages_end}
    del values["codes_bytes"]  # stands in the footer anyway
    limit = _PART_SHARE * summary.counts_NK.sum()  # about a byte each
    for part in _PARTS:
        if len(canonical_json(values[part])) > limit:
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
    codes_FN = checked_codes(table[CODES], num_frames, contract, where=where, remedy=EXTRACT_AGAIN)
    counts = [np.bincount(codes_F, minlength=contract.codebook_size) for codes_F in codes_FN.T]
    return np.stack(counts).astype(np.int64)


def _pack(counts_NK: np.ndarray) -> list[Any]:
    """Shape, integer type, text: the smallest type that holds all counts, zlib, base 64."""
    largest = counts_NK.max(initial=0)
    kind = next(kind for kind in _INTEGERS if largest <= np.iinfo(kind).max)
    data = zlib.compress(counts_NK.astype(kind).tobytes(), 9)
    return [*counts_NK.shape, kind, base64.b64encode(data).decode()]


def _unpack(packed: Sequence[Any]) -> np.ndarray:
    num_codebooks, codebook_size, kind, text = packed
    if kind not in _INTEGERS:
        raise ValueError(f"counts of type {kind!r}")
    counts = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=kind)
    return counts.reshape(num_codebooks, codebook_size).astype(np.int64)


def _crc(values: Mapping[str, Any]) -> int:
    return zlib.crc32(canonical_json(values).encode())
