"""What an index table holds, in figures: size, quality of the codes, use of the codebooks."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mvqkd.storage.contract import TableContract
from mvqkd.storage.failures import FAILURES_FOLDER, read_failures
from mvqkd.storage.location import Location
from mvqkd.storage.parquet import compressed_bytes, read_columns
from mvqkd.storage.payloads import CODES, STORED, split_codes
from mvqkd.storage.table import IndexTable

_COLUMNS = ("cut_id", "duration", "num_frames", "rrl", "speaker", "codes")


@dataclass(frozen=True, kw_only=True)
class TableSummary:
    """Figures of an index table; those that divide by nothing in an empty table are None.

    Attributes:
        url, contract: the table.
        shards, rows: numbers of files and cuts.
        hours: of audio (sum of `duration`).
        frames, indexes: T and T x N, summed over cuts.
        total_bytes: of all objects of the table, with `table.json` and the failures table.
        bytes_per_index: `total_bytes` over `indexes`.
        codes_bytes_per_index: the codes column alone, as compressed in the files.
        mean_rrl: over cuts; `frame_weighted_rrl`: over frames.
        worst_rrl, worst_rrl_cut_id: the cut the quantizer reconstructs worst.
        entropy_bits: per codebook, entropy of its use; 8 for 256 equally used entries.
        perplexity: per codebook, 2 ** entropy.
        unused_fraction: per codebook, share of entries that never occur.
        speakers, hours_by_speaker: over cuts with a speaker.
        failures: records in the failures table.
        bytes_per_hour: `total_bytes` over `hours`.
        float32_bytes_per_hour, float16_bytes_per_hour: what the embeddings would take; None without their
            dimension.
    """

    url: str
    contract: TableContract
    shards: int
    rows: int
    hours: float
    frames: int
    indexes: int
    total_bytes: int
    bytes_per_index: float | None
    codes_bytes_per_index: float | None
    mean_rrl: float | None
    frame_weighted_rrl: float | None
    worst_rrl: float | None
    worst_rrl_cut_id: str | None
    entropy_bits: tuple[float, ...]
    perplexity: tuple[float, ...]
    unused_fraction: tuple[float, ...]
    speakers: int
    hours_by_speaker: Mapping[str, float]
    failures: int
    bytes_per_hour: float | None
    float32_bytes_per_hour: float | None
    float16_bytes_per_hour: float | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


class _Totals:
    """Sums over the shards seen so far."""

    def __init__(self, contract: TableContract) -> None:
        self.rows, self.frames, self.codes_bytes = 0, 0, 0
        self.duration_s, self.rrl, self.weighted_rrl = 0.0, 0.0, 0.0
        self.worst: tuple[float, str] | None = None
        self.speaker_s: defaultdict[str, float] = defaultdict(float)
        self.counts_NK = np.zeros((contract.num_codebooks, contract.codebook_size), dtype=np.int64)

    def add(self, file: pq.ParquetFile, *, where: str) -> None:
        """Add one shard."""
        table = read_columns(file, _COLUMNS, where=where)
        durations, rrl = table["duration"].to_numpy(), table["rrl"].to_numpy().astype(np.float64)
        num_frames = table["num_frames"].to_numpy()
        self.rows += table.num_rows
        self.frames += int(num_frames.sum())
        self.duration_s += float(durations.sum())
        self.rrl += float(rrl.sum())
        self.weighted_rrl += float(rrl @ num_frames)
        self.codes_bytes += compressed_bytes(file.metadata, STORED[CODES].leaf)
        if table.num_rows:
            row = int(rrl.argmax())
            worst = (float(rrl[row]), table["cut_id"][row].as_py())
            self.worst = worst if self.worst is None or worst[0] > self.worst[0] else self.worst
        for speaker, duration_s in zip(table["speaker"].to_pylist(), durations, strict=True):
            if speaker is not None:
                self.speaker_s[speaker] += float(duration_s)
        codes_FN, _ = split_codes(table["codes"])
        for codebook, counts_K in enumerate(self.counts_NK):
            counts_K += np.bincount(codes_FN[:, codebook], minlength=len(counts_K))


def inspect_table(location: Location, *, embedding_dim: int | None = None) -> TableSummary:
    """Read a table once, one shard in memory at a time, and sum it up.

    Args:
        location: of the table.
        embedding_dim: of the teacher, to compare with storing its embeddings.

    Raises:
        TableError: no table there, or a damaged file.
        ContractError: a file of another contract.
    """
    table = IndexTable.open(location)
    sizes = location.list()
    names = sorted(table.committed())
    totals = _Totals(table.contract)
    for name in names:
        totals.add(table.open_shard(name), where=location.full_url(table.shard_path(name)))
    total_bytes = sum(sizes.values()) + sum(location.join(FAILURES_FOLDER).list().values())
    indexes, hours = totals.frames * table.contract.num_codebooks, totals.duration_s / 3600
    entropy_bits = tuple(_entropy_bits(counts_K) for counts_K in totals.counts_NK)
    frames_per_hour = _ratio(totals.frames, hours) if embedding_dim else None
    float16 = (
        None if frames_per_hour is None or embedding_dim is None else frames_per_hour * embedding_dim * 2
    )
    return TableSummary(
        url=location.url,
        contract=table.contract,
        shards=len(names),
        rows=totals.rows,
        hours=hours,
        frames=totals.frames,
        indexes=indexes,
        total_bytes=total_bytes,
        bytes_per_index=_ratio(total_bytes, indexes),
        codes_bytes_per_index=_ratio(totals.codes_bytes, indexes),
        mean_rrl=_ratio(totals.rrl, totals.rows),
        frame_weighted_rrl=_ratio(totals.weighted_rrl, totals.frames),
        worst_rrl=totals.worst[0] if totals.worst else None,
        worst_rrl_cut_id=totals.worst[1] if totals.worst else None,
        entropy_bits=entropy_bits,
        perplexity=tuple(2.0**bits for bits in entropy_bits),
        unused_fraction=tuple(float((counts_K == 0).mean()) for counts_K in totals.counts_NK),
        speakers=len(totals.speaker_s),
        hours_by_speaker={name: totals.speaker_s[name] / 3600 for name in sorted(totals.speaker_s)},
        failures=len(read_failures(location)),
        bytes_per_hour=_ratio(total_bytes, hours),
        float32_bytes_per_hour=None if float16 is None else 2 * float16,
        float16_bytes_per_hour=float16,
    )


def _entropy_bits(counts_K: np.ndarray) -> float:
    used = counts_K[counts_K > 0] / max(1, counts_K.sum())
    return float(-(used * np.log2(used)).sum()) + 0.0  # no "-0.0" for a codebook with one used entry


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
