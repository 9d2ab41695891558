"""Extraction of one shard: audio to teacher to quantizer to one committed Parquet object."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut
from lhotse.augmentation import Speed

from models.quantizer import Quantizer, rrl
from storage.failures import Failure, write_failures
from storage.filesystem import Location
from storage.schema import IndexRow
from storage.table import IndexTable
from workers.embed import Embedded, Embedder, LeftOut
from workers.shards import Shard, cut_to_json, read_shard_cuts

ENCODE_FRAMES = 8192


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What became of one shard. `seconds` is wall time; `hours` counts the audio in the table."""

    name: str
    num_rows: int
    num_left_out: int
    hours: float
    num_frames: int
    seconds: float


class Extractor:
    """Turns planned shards into table shards. Loaded once, then `run` for each shard.

    Args:
        embedder: the teacher and how it is fed.
        quantizer: fitted on this teacher's embeddings.
        table: where shards are committed.
        plan: folder of the plan.
    """

    def __init__(
        self, *, embedder: Embedder, quantizer: Quantizer, table: IndexTable, plan: Location
    ) -> None:
        self._embedder = embedder
        self._quantizer = quantizer.eval()
        self._table = table
        self._plan = plan

    def run(self, shard: Shard) -> ShardReport:
        """Extract and commit a shard; utterances that cannot be used are recorded in the failures table.

        Raises:
            StorageError: the plan cannot be read or the table cannot be written; nothing is committed.
        """
        began = time.monotonic()
        name = shard.name(self._table.contract.digest())
        rows: dict[int, IndexRow] = {}
        left_out: list[LeftOut] = []
        cuts = list(read_shard_cuts(self._plan, shard))
        position = {cut.id: number for number, cut in enumerate(cuts)}
        waiting: list[Embedded] = []
        for result in self._embedder(cuts):
            if isinstance(result, LeftOut):
                left_out.append(result)
                continue
            waiting.append(result)
            # The quantizer works on many frames at a time, the teacher on few.
            if sum(e.embeddings_TD.shape[0] for e in waiting) >= ENCODE_FRAMES:
                rows |= {position[row["cut_id"]]: row for row in self._rows(waiting)}
                waiting = []
        rows |= {position[row["cut_id"]]: row for row in self._rows(waiting)}
        failures = [
            Failure(shard=name, cut_id=x.cut.id, stage=x.stage, error=x.error, message=x.message, attempts=1)
            for x in left_out
        ]
        # Failures first: the shard's object is the commit, and it must not stand without its record.
        write_failures(self._table.location, name, failures)
        ordered = [rows[number] for number in sorted(rows)]
        self._table.write_shard(name, ordered)
        return ShardReport(
            name=name,
            num_rows=len(ordered),
            num_left_out=len(left_out),
            hours=sum(row["duration"] for row in ordered) / 3600,
            num_frames=sum(row["num_frames"] for row in ordered),
            seconds=time.monotonic() - began,
        )

    def _rows(self, batch: list[Embedded]) -> list[IndexRow]:
        if not batch:
            return []
        x_FD = torch.cat([embedded.embeddings_TD for embedded in batch])
        codes_FN = self._quantizer.encode(x_FD, as_bytes=False)
        x_hat_FD = self._quantizer.decode(codes_FN)
        lengths = [embedded.embeddings_TD.shape[0] for embedded in batch]
        mean_D = self._quantizer.get_data_mean()
        parts = zip(batch, codes_FN.cpu().split(lengths), x_hat_FD.split(lengths), strict=True)
        return [
            IndexRow(
                **identity(embedded.cut, embedded.num_samples),  # type: ignore[typeddict-item]
                cut_id=embedded.cut.id,
                num_frames=codes_TN.shape[0],
                rrl=rrl(embedded.embeddings_TD, x_hat_TD, mean=mean_D),
                speaker=speaker_of(embedded.cut),
                text=text_of(embedded.cut),
                codes=codes_TN.numpy().astype(np.uint8),
                cut=cut_to_json(embedded.cut),
            )
            for embedded, codes_TN, x_hat_TD in parts
        ]


def identity(cut: MonoCut, num_samples: int) -> dict[str, Any]:
    """The key columns of a row: which audio this is, whatever its cut is called."""
    return {
        "recording_id": cut.recording.id,
        "channel": cut.channel,
        "start": cut.start,
        "duration": cut.duration,
        "speed": speed_of(cut),
        "num_samples": num_samples,
    }


def speed_of(cut: MonoCut) -> float:
    """Speed perturbation factor of the cut's recording; 1.0 when there is none."""
    speed = 1.0
    for transform in cut.recording.transforms or []:
        if isinstance(transform, Speed):
            speed *= transform.factor
        elif isinstance(transform, dict) and transform.get("name") == "Speed":
            speed *= transform["kwargs"]["factor"]
    return speed


def speaker_of(cut: MonoCut) -> str | None:
    """The speaker of the cut's first supervision that names one."""
    return next((s.speaker for s in cut.supervisions if s.speaker), None)


def text_of(cut: MonoCut) -> str | None:
    """The transcripts of the cut's supervisions in time order, or None when it has none."""
    texts = [s.text for s in sorted(cut.supervisions, key=lambda s: s.start) if s.text is not None]
    return " ".join(texts) if texts else None
