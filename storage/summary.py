"""What an index table holds, in figures: size, quality of the codes, use of the codebooks.

Shape suffixes: N codebooks, K entries of a codebook.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mvqkd.storage.contract import TableContract
from mvqkd.storage.failures import FAILURES_FOLDER, read_failures
from mvqkd.storage.location import Location
from mvqkd.storage.shard_summary import ShardSummary, SummaryTotal
from mvqkd.storage.table import IndexTable, shard_names
from mvqkd.storage.threads import READING_THREADS, map_in_order


@dataclass(frozen=True, kw_only=True)
class TableSummary:
    """Figures of an index table; those that divide by nothing in an empty table are None.

    Attributes:
        url, contract: the table.
        shards, rows: numbers of files and cuts.
        hours: of audio (sum of `duration`).
        frames, indexes: T and T x N, summed over cuts; there are no indexes of embeddings, and no figures of them.
        total_bytes: of all objects of the table, with `table.json` and the failures table.
        bytes_per_frame: `total_bytes` over `frames`; `bytes_per_index`: over `indexes`.
        codes_bytes_per_index: the codes column alone, as compressed in the files.
        mean_rrl: over cuts; `frame_weighted_rrl`: over frames.
        worst_rrl, worst_rrl_cut_id: the cut the quantizer reconstructs worst. None where codes were imported.
        entropy_bits: per codebook, entropy of its use; 8 for 256 equally used entries.
        perplexity: per codebook, 2 ** entropy.
        unused_fraction: per codebook, share of entries that never occur.
        speakers, hours_by_speaker: over cuts with a speaker.
        failures: records in the failures table.
        bytes_per_hour: `total_bytes` over `hours`.
        float32_bytes_per_hour, float16_bytes_per_hour: what the embeddings take uncompressed, or would; None without
            their dimension.
    """

    url: str
    contract: TableContract
    shards: int
    rows: int
    hours: float
    frames: int
    indexes: int
    total_bytes: int
    bytes_per_frame: float | None
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


def inspect_table(location: Location, *, embedding_dim: int | None = None) -> TableSummary:
    """Sum up the footers of a table's shards, several read at a time.

    Args:
        location: of the table.
        embedding_dim: of the teacher, to compare codes with storing its embeddings.

    Raises:
        TableError: no table there, or a damaged file.
        ContractError: a file of another contract.
    """
    table = IndexTable.open(location)
    sizes = object_sizes(table)
    total = SummaryTotal(table.contract)
    for summary in map_in_order(table.summary_of, shard_names(sizes), threads=READING_THREADS):
        total.add(summary)
    return summarize(
        table,
        total.total(),
        sizes=sizes,
        num_failures=len(read_failures(location)),
        embedding_dim=embedding_dim,
    )


def object_sizes(table: IndexTable) -> dict[str, int]:
    """Bytes of all objects of a table by their path in it, by two listings: its own and that of its failures."""
    failures = table.location.list(FAILURES_FOLDER)
    return table.location.list() | {f"{FAILURES_FOLDER}/{name}": size for name, size in failures.items()}


def summarize(
    table: IndexTable,
    total: ShardSummary,
    *,
    sizes: Mapping[str, int],
    num_failures: int,
    embedding_dim: int | None = None,
) -> TableSummary:
    """The figures of a table out of sums that are known already; reads nothing.

    Args:
        table: its url and contract.
        total: the summary of all its shards.
        sizes: from `object_sizes`.
        num_failures: records in its failures table.
        embedding_dim: of the teacher, to compare with storing its embeddings.
    """
    total_bytes = sum(sizes.values())
    indexes, hours = total.frames * table.contract.num_codebooks, total.duration_s / 3600
    entropy_bits = tuple(_entropy_bits(counts_K) for counts_K in total.counts_NK)
    dim = table.contract.dim or embedding_dim
    frames_per_hour = _ratio(total.frames, hours)
    float16 = None if frames_per_hour is None or dim is None else frames_per_hour * dim * 2
    # All rows of a table know it, or none: imported codes have a contract of their own, and embeddings have no loss.
    rrl_known = total.worst_rrl is not None and total.worst_rrl >= 0
    return TableSummary(
        url=table.location.url,
        contract=table.contract,
        shards=len(shard_names(sizes)),
        rows=total.rows,
        hours=hours,
        frames=total.frames,
        indexes=indexes,
        total_bytes=total_bytes,
        bytes_per_frame=_ratio(total_bytes, total.frames),
        bytes_per_index=_ratio(total_bytes, indexes),
        codes_bytes_per_index=_ratio(total.codes_bytes, indexes),
        mean_rrl=_ratio(total.rrl_sum, total.rows) if rrl_known else None,
        frame_weighted_rrl=_ratio(total.weighted_rrl_sum, total.frames) if rrl_known else None,
        worst_rrl=total.worst_rrl if rrl_known else None,
        worst_rrl_cut_id=total.worst_cut_id if rrl_known else None,
        entropy_bits=entropy_bits,
        perplexity=tuple(2.0**bits for bits in entropy_bits),
        unused_fraction=tuple(float((counts_K == 0).mean()) for counts_K in total.counts_NK),
        speakers=len(total.speaker_s),
        hours_by_speaker={name: total.speaker_s[name] / 3600 for name in sorted(total.speaker_s)},
        failures=num_failures,
        bytes_per_hour=_ratio(total_bytes, hours),
        float32_bytes_per_hour=None if float16 is None else 2 * float16,
        float16_bytes_per_hour=float16,
    )


def _entropy_bits(counts_K: np.ndarray) -> float:
    used = counts_K[counts_K > 0] / max(1, counts_K.sum())
    return float(-(used * np.log2(used)).sum()) + 0.0  # no "-0.0" for a codebook with one used entry


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
