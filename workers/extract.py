"""Extraction of one shard: audio to teacher to quantizer to one committed Parquet object.

Shape suffixes: T frames of an utterance, F frames of several, D embedding dimension, N codebooks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lhotse import MonoCut

from mvqkd.models.quantizer import Quantizer, rrl
from mvqkd.storage.errors import ContractError
from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.location import Location
from mvqkd.storage.rows import IndexRow
from mvqkd.storage.shard_summary import ShardSummary
from mvqkd.storage.shared_place import require_seen
from mvqkd.storage.table import IndexTable
from mvqkd.workers.cuts import cut_to_json, identity, speaker_of, text_of
from mvqkd.workers.embed import Embedded, Embedder, EmbedderSettings, LeftOut
from mvqkd.workers.plan import Shard, read_plan, read_shard_cuts
from mvqkd.workers.quantizer_record import load_quantizer
from mvqkd.workers.teacher import choose_device

ENCODE_FRAMES = 8192


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What became of one shard: its name, what is in it, how many of its utterances are not, and the wall time."""

    name: str
    summary: ShardSummary
    num_left_out: int
    seconds: float


class UnreadableShardError(RuntimeError):
    """Too much of a shard's audio cannot be read; nothing was committed."""


class DeviceMemoryError(RuntimeError):
    """The device has no memory for one utterance alone; nothing was committed."""


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """What an `Extractor` is built from, in the process where it works.

    Attributes:
        embedder: the teacher and how it is fed.
        quantizer: folder of the fitted one.
        table, plan, max_unreadable: as of `Extractor`.
    """

    embedder: EmbedderSettings
    quantizer: Location
    table: IndexTable
    plan: Location
    max_unreadable: float

    def build(self) -> "Extractor":
        """Load teacher and quantizer in this process.

        Raises:
            SharedPlaceError: the plan is not seen from here.
            ContractError: the quantizer was fitted on another teacher than this one.
        """
        require_seen(self.plan, "plan.json")
        embedder = self.embedder.build()
        _check_rate(embedder, self.plan)
        quantizer, record = load_quantizer(self.quantizer)
        fingerprint = embedder.teacher.info.fingerprint
        if fingerprint != record.teacher["fingerprint"]:
            raise ContractError(
                f"{self.embedder.teacher.path}: the teacher's fingerprint is {fingerprint}, but the quantizer was "
                f"fitted on {record.teacher['fingerprint']}: another checkpoint, layer or dtype; set it back or fit "
                "again"
            )
        return Extractor(
            embedder=embedder,
            quantizer=quantizer.to(choose_device(self.embedder.teacher.device)),
            table=self.table,
            plan=self.plan,
            max_unreadable=self.max_unreadable,
        )


def _check_rate(embedder: Embedder, location: Location) -> None:
    """The plan was made where the teacher may have been out of reach; its rate decided what is refused."""
    plan = read_plan(location)
    assert plan is not None, "seen before"
    planned, takes = plan.settings.get("sample_rate_hz"), embedder.teacher.info.sample_rate_hz
    if planned is not None and planned != takes:
        raise ContractError(
            f"{location.url}: planned for a teacher of {planned} Hz, but it takes {takes} Hz; `mvqkd plan` plans again"
        )


class Extractor:
    """Turns planned shards into table shards. Loaded once, then `run` for each shard.

    Args:
        embedder: the teacher and how it is fed.
        quantizer: fitted on this teacher's embeddings.
        table: where shards are committed.
        plan: folder of the plan.
        max_unreadable: share of a shard's utterances whose audio may be missing or damaged; one always may.
    """

    def __init__(
        self,
        *,
        embedder: Embedder,
        quantizer: Quantizer,
        table: IndexTable,
        plan: Location,
        max_unreadable: float = 0.2,
    ) -> None:
        self._embedder = embedder
        self._quantizer = quantizer.eval()
        self._table = table
        self._plan = plan
        self._max_unreadable = max_unreadable

    def run(
        self,
        shard: Shard,
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> ShardReport:
        """Extract and commit a shard; utterances that cannot be used are recorded in the failures table.

        Args:
            last_attempt: whether an utterance that the device has no memory for is left out. Before that it
                ends the attempt, since another device, or this one with less on it, may have room.
            note: called after each utterance with the shard's `position` and the `hours` that the teacher has done.

        Raises:
            UnreadableShardError: so much audio cannot be read that the fault must be elsewhere.
            DeviceMemoryError: an utterance is too large for the device, and this is not the last attempt.
            StorageError: the plan cannot be read or the table cannot be written; nothing is committed.
        """
        began = time.monotonic()
        name = shard.name(self._table.contract.digest())
        cuts = list(read_shard_cuts(self._plan, shard))
        rows, left_out = self._coded(cuts, shard.position, last_attempt, note)
        failures = [
            Failure(shard=name, cut_id=x.cut.id, stage=x.stage, error=x.error, message=x.message, attempts=1)
            for x in left_out
        ]
        # Failures first: the shard's object is the commit, and it must not stand without its record.
        write_failures(self._table.location, name, failures)
        written = self._table.write_shard(name, rows)
        return ShardReport(
            name=name,
            summary=written.summary,
            num_left_out=len(left_out),
            seconds=time.monotonic() - began,
        )

    def _coded(
        self,
        cuts: Sequence[MonoCut],
        shard_position: int,
        last_attempt: bool,
        note: Callable[[dict[str, Any]], None],
    ) -> tuple[list[IndexRow], list[LeftOut]]:
        """A row for each cut that could be coded, in the order of the cuts, and the other cuts."""
        rows: dict[str, IndexRow] = {}
        left_out: list[LeftOut] = []
        waiting: list[Embedded] = []
        done_s = 0.0
        for result in self._embedder(cuts):
            done_s += result.cut.duration
            note({"position": shard_position, "hours": done_s / 3600})
            if isinstance(result, LeftOut):
                if result.stage == "device" and not last_attempt:
                    raise DeviceMemoryError(result.message)
                left_out.append(result)
                self._check_readable(left_out, len(cuts))
                continue
            waiting.append(result)
            # The quantizer works on many frames at a time, the teacher on few.
            if sum(e.embeddings_TD.shape[0] for e in waiting) >= ENCODE_FRAMES:
                rows |= {row["cut_id"]: row for row in self._rows(waiting)}
                waiting = []
        rows |= {row["cut_id"]: row for row in self._rows(waiting)}
        return [rows[cut.id] for cut in cuts if cut.id in rows], left_out

    def _check_readable(self, left_out: list[LeftOut], num_cuts: int) -> None:
        """One bad file is the file's fault. Many are a disk that is not mounted here, and committing a shard
        without them would lose them for good."""
        unreadable = [x for x in left_out if x.stage == "load"]
        if len(unreadable) > max(1, self._max_unreadable * num_cuts):
            raise UnreadableShardError(
                f"{len(unreadable)} of {num_cuts} utterances cannot be read, the last one: "
                f"{unreadable[-1].message}; if that is how this corpus is, raise extract.max_unreadable "
                f"(now {self._max_unreadable:g})"
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
