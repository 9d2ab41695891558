"""Extraction of shards: audio to teacher to quantizer to one committed Parquet object in each table.

Several shards are at work at a time, and one of them has the teacher: while it has, the first batches of the next one
are decoded, and what came before is packed and written.

A table holds codes of its quantizer, or the embeddings themselves.

Shape suffixes: T frames of an utterance, N codebooks, D embedding dimension.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lhotse import MonoCut

from mvqkd.models.quantizer import Quantizer
from mvqkd.storage.contract import CODES
from mvqkd.storage.errors import ContractError
from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.location import Location
from mvqkd.storage.rows import EmbeddingsRow, IndexRow, TableRow
from mvqkd.storage.shard_summary import ShardSummary
from mvqkd.storage.shared_place import require_seen
from mvqkd.storage.table import IndexTable
from mvqkd.workers.code import CPU, BatchCoder, Coded, Rounded, Target
from mvqkd.workers.cuts import cut_to_json, identity, speaker_of, text_of
from mvqkd.workers.embed import Embedder, EmbedderSettings
from mvqkd.workers.feed import Feeding, LeftOut
from mvqkd.workers.line import Line
from mvqkd.workers.meters import Meters
from mvqkd.workers.plan import Shard, read_plan, read_shard_cuts
from mvqkd.workers.quantizer_record import load_quantizer
from mvqkd.workers.shard_codes import ShardCodes
from mvqkd.workers.teacher import choose_device

SHARDS_AT_ONCE = 3
"""One that is decoded, one that has the teacher, one that is packed and written."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What became of one shard: in each table its name and what is in it, how many of its utterances are in none, and
    the wall time."""

    tables: tuple[tuple[str, ShardSummary], ...]
    num_left_out: int
    seconds: float


class UnreadableShardError(RuntimeError):
    """Too much of a shard's audio cannot be read; nothing was committed."""


class DeviceMemoryError(RuntimeError):
    """The device has no memory for one utterance alone; nothing was committed."""


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """A table, whose contract says of which layer it is and how codes are searched, and the folder of its quantizer;
    None for a table of embeddings."""

    table: IndexTable
    quantizer: Location | None


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """What an `Extractor` is built from, in the process where it works.

    Attributes:
        embedder: the teacher and how it is fed.
        tables: one or more, all of this teacher.
        plan, max_unreadable: as of `Extractor`.
    """

    embedder: EmbedderSettings
    tables: tuple[TableSettings, ...]
    plan: Location
    max_unreadable: float

    def build(self) -> "Extractor":
        """Load teacher and quantizers in this process.

        Raises:
            SharedPlaceError: the plan is not seen from here.
            ContractError: a quantizer was fitted on another teacher than this one, or a table of embeddings is of
                another one.
        """
        require_seen(self.plan, "plan.json")
        layers = sorted({each.table.contract.layer for each in self.tables})
        embedder = replace(self.embedder, layers=tuple(layers)).build()
        _check_rate(embedder, self.plan)
        device = choose_device(self.embedder.teacher.device)
        loaded: list[tuple[IndexTable, Quantizer | None]] = []
        for each in self.tables:
            quantizer, of = None, each.table.contract.teacher_fingerprint
            if each.quantizer is not None:
                quantizer, record = load_quantizer(each.quantizer)
                quantizer, of = quantizer.to(device), record.teacher["fingerprint"]
            info = embedder.teacher.info_at(each.table.contract.layer)
            if info.fingerprint != of:
                made = f"the table {each.table.location.url} is of"
                made = made if quantizer is None else "the quantizer was fitted on"
                raise ContractError(
                    f"{self.embedder.teacher.path}: the teacher's fingerprint is {info.fingerprint}, but {made} {of}: "
                    "another checkpoint, layer or dtype; set it back or fit again"
                )
            loaded.append((each.table, quantizer))
        return Extractor(
            embedder=embedder,
            tables=loaded,
            plan=self.plan,
            max_unreadable=self.max_unreadable,
            device=device,
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
    """Turns planned shards into table shards. Loaded once, then `run` for each shard, of several at a time.

    Args:
        embedder: the teacher and how it is fed.
        tables: where shards are committed, and the quantizer of each, fitted on this teacher's embeddings; None for
            a table of embeddings.
        plan: folder of the plan.
        max_unreadable: share of a shard's utterances whose audio may be missing or damaged; one always may.
        device: of the teacher.
    """

    def __init__(
        self,
        *,
        embedder: Embedder,
        tables: Sequence[tuple[IndexTable, Quantizer | None]],
        plan: Location,
        max_unreadable: float = 0.2,
        device: torch.device = CPU,
    ) -> None:
        self._feeder = embedder.feeder
        for table, quantizer in tables:
            assert (table.contract.payload == CODES) == (quantizer is not None), table.contract
        targets = [
            Target(layer=table.contract.layer, quantizer=quantizer, search=table.contract.search)
            for table, quantizer in tables
        ]
        self._coder = BatchCoder(embedder.teacher, targets, device=device)
        self._tables = [table for table, _ in tables]
        self._plan = plan
        self._max_unreadable = max_unreadable
        self._line = Line()
        self.meters = Meters()

    def run(
        self,
        shard: Shard,
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> ShardReport:
        """Extract and commit a shard; utterances that cannot be used are recorded in the failures tables.

        Called in several threads, it lets one shard after the other have the teacher, in the order of the calls. A
        shard that another process has committed meanwhile is not computed.

        Args:
            last_attempt: whether an utterance that the device has no memory for is left out. Before that it
                ends the attempt, since another device, or this one with less on it, may have room.
            note: called after each batch with the shard's `position`, the `hours` that the teacher has done, and
                the `meters` of this worker.

        Raises:
            UnreadableShardError: so much audio cannot be read that the fault must be elsewhere.
            DeviceMemoryError: an utterance is too large for the device, and this is not the last attempt.
            StorageError: the plan cannot be read or the table cannot be written; nothing is committed.
        """
        began = time.monotonic()
        done = self._committed(shard)
        if done is not None:
            num_left_out = shard.num_cuts - max(summary.rows for _, summary in done)
            return ShardReport(tables=done, num_left_out=num_left_out, seconds=time.monotonic() - began)

        def tell(hours: float) -> None:
            note({"position": shard.position, "hours": hours, "meters": self.meters.read()})

        with self.meters.shard():
            cuts = list(read_shard_cuts(self._plan, shard))
            with self._line.place() as my_turn, self._feeder.begin(cuts) as feeding:
                my_turn()
                codes = self._code(cuts, feeding, last_attempt, tell)
            # The device has the next shard's first batch behind this one's last.
            codes.finish()
            tables = tuple(self._commit(shard, cuts, codes, number) for number in range(len(self._tables)))
        self.meters.add(shards=1)
        tell(codes.seconds / 3600)
        return ShardReport(tables=tables, num_left_out=codes.num_left_out, seconds=time.monotonic() - began)

    def _committed(self, shard: Shard) -> tuple[tuple[str, ShardSummary], ...] | None:
        """The shard in all tables if it is in them, as after an actor that was lost behind its last PUT."""
        found = []
        for table in self._tables:
            name = shard.name(table.contract.digest())
            summary = table.find(name)
            if summary is None:
                return None
            found.append((name, summary))
        return tuple(found)

    def _code(
        self,
        cuts: Sequence[MonoCut],
        feeding: Feeding,
        last_attempt: bool,
        tell: Callable[[float], None],
    ) -> ShardCodes:
        """The codes of the cuts, batch by batch; the last one may still be under way."""
        codes = ShardCodes(self._coder, self.meters)
        for done in feeding.run(self._coder.launch):
            codes.take(done)
            if isinstance(done, LeftOut):
                self._check_left_out(done, codes.left_out, len(cuts), last_attempt)
            self.meters.set_queue(feeding.num_ready)
            tell(codes.seconds / 3600)
        self.meters.add(waited_s=feeding.waited.seconds)
        return codes

    def _check_left_out(
        self, left_out: LeftOut, all_left_out: Sequence[LeftOut], num_cuts: int, last_attempt: bool
    ) -> None:
        """One bad file is the file's fault. Many are a disk that is not mounted here, and committing a shard
        without them would lose them for good."""
        if left_out.stage == "device" and not last_attempt:
            raise DeviceMemoryError(left_out.message)
        unreadable = sum(x.stage == "load" for x in all_left_out)
        if left_out.stage == "load" and unreadable > max(1, self._max_unreadable * num_cuts):
            raise UnreadableShardError(
                f"{unreadable} of {num_cuts} utterances cannot be read, the last one: "
                f"{left_out.message}; if that is how this corpus is, raise extract.max_unreadable "
                f"(now {self._max_unreadable:g})"
            )

    def _commit(
        self, shard: Shard, cuts: Sequence[MonoCut], codes: ShardCodes, number: int
    ) -> tuple[str, ShardSummary]:
        """Pack and write the shard of one table."""
        table = self._tables[number]
        name = shard.name(table.contract.digest())
        kept = ((cut, codes.coded[cut.id][number]) for cut in cuts if cut.id in codes.coded)
        rows = [_row(cut, one, codes.num_samples[cut.id]) for cut, one in kept if one is not None]
        failures = [
            Failure(shard=name, cut_id=x.cut.id, stage=x.stage, error=x.error, message=x.message, attempts=1)
            for x in (*codes.left_out, *codes.left_out_of[number])
        ]
        # Failures first: the shard's object is the commit, and it must not stand without its record.
        write_failures(table.location, name, failures)
        written = table.write_shard(name, rows)
        self.meters.add(bytes_written=written.num_bytes)
        return name, written.summary


def _row(cut: MonoCut, kept: Coded | Rounded, num_samples: int) -> TableRow:
    known: dict[str, Any] = {
        **identity(cut, num_samples),
        "cut_id": cut.id,
        "speaker": speaker_of(cut),
        "text": text_of(cut),
        "cut": cut_to_json(cut),
    }
    if isinstance(kept, Coded):
        return IndexRow(**known, num_frames=len(kept.codes_TN), rrl=kept.rrl, codes=kept.codes_TN)  # type: ignore[typeddict-item]
    return EmbeddingsRow(**known, num_frames=len(kept.embeddings_TD), embeddings=kept.embeddings_TD)  # type: ignore[typeddict-item]
