"""Where the targets of a head come from, apart from the head that learns them and from the training loop.

Shape suffixes: S student frames, T teacher frames, N codebooks, K = N * teacher frames per student frame.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mvqkd.models.alignment import FrameAlignment
from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.models.students.base import StudentFrames
from mvqkd.storage.contract import CODES, TableContract
from mvqkd.storage.rows import arrow_to_rows
from mvqkd.storage.table import IndexTable, check_row_matches
from mvqkd.workers.distill.embedding_targets import TableEmbeddings

IDENTITY_COLUMNS = ("cut_id", "recording_id", "channel", "start", "duration", "speed", "num_samples")
SHARD = "shard"
"""Not a column: the name of the shard that a row lies in, which stands in every row that targets are made of."""


class TargetSource(Protocol):
    """Targets of one head, one utterance after the other. Called from several threads."""

    @property
    def spec(self) -> TargetSpec:
        """What a student frame is to predict."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the index table that the targets are made of."""
        ...

    def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
        """Targets of one utterance, (num_frames, width of the spec); padding values where there is none.

        Args:
            row: of the index table, with `columns` and `cut_id`.
            num_frames: of the student.

        Raises:
            ValueError: the row and the student's frames do not belong together.
        """
        ...


class LiveSource(Protocol):
    """Targets that a teacher makes in the training step."""

    @property
    def spec(self) -> TargetSpec:
        """What a student frame is to predict."""
        ...

    def targets(self, waveforms: Sequence[Tensor], num_frames: Sequence[int]) -> list[Tensor]:
        """Targets of a batch's utterances, each (num_frames, width of the spec), on the teacher's device."""
        ...


class TableCodes:
    """The codes of an index table.

    Args:
        contract: of the table.
        alignment: teacher frames to student frames.
        codebooks: take only the first so many codes of a frame; None takes all.
    """

    columns = ("codes",)

    def __init__(
        self, contract: TableContract, alignment: FrameAlignment, *, codebooks: int | None = None
    ) -> None:
        self._alignment, self._codebooks = alignment, codebooks
        self.spec = TargetSpec(
            kind="codes",
            num_codebooks=(codebooks or contract.num_codebooks) * alignment.frames_per_target,
            codebook_size=contract.codebook_size,
        )

    def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
        """int64 (S, K), -100 where there is none. Raises `AlignmentError` when too many are missing."""
        return self._alignment(torch.tensor(row["codes"])[:, : self._codebooks], num_frames)


class JoinedTable:
    """Targets out of another table of the same cuts: of another teacher, another layer, another quantizer.

    Its shards are those of the same plan, so that a row's codes are found by its shard's position and its cut, and only
    taken when they are of the same audio.

    Args:
        table: the other one.
        inner: makes the targets of a row of it.
        keep: shards that stay in memory.
    """

    columns = (*IDENTITY_COLUMNS, SHARD)

    def __init__(self, table: IndexTable, inner: TargetSource, *, keep: int = 9) -> None:
        self._table, self._inner, self._keep = table, inner, keep
        self._names = {_position(name): name for name in sorted(table.committed())}
        self._shards: OrderedDict[str, dict[str, dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def spec(self) -> TargetSpec:
        """See `TargetSource`."""
        return self._inner.spec

    def targets(self, row: Mapping[str, Any], num_frames: int) -> Tensor:
        """See `TargetSource`. Raises `StaleCodesError` when the other row is of other audio."""
        other = self._row(row)
        # The samples are counted at each table's own rate.
        same = {name: row[name] for name in IDENTITY_COLUMNS if name not in ("cut_id", "num_samples")}
        check_row_matches(other, **same, num_samples=other["num_samples"])
        return self._inner.targets(other, num_frames)

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        name = self._names.get(_position(row[SHARD]))
        rows = {} if name is None else self._rows(name)
        if row["cut_id"] not in rows:
            raise ValueError(
                f"{self._table.location.url} has nothing for this cut; extract that table to its end, from the same "
                "plan, or leave it out of distill.targets"
            )
        return rows[row["cut_id"]]

    def _rows(self, name: str) -> dict[str, dict[str, Any]]:
        with self._lock:
            if name not in self._shards:
                columns = [*IDENTITY_COLUMNS, *self._inner.columns]
                read = self._table.read_shard(name, columns=columns)
                self._shards[name] = {row["cut_id"]: row for row in arrow_to_rows(read)}
                while len(self._shards) > self._keep:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(name)
            return self._shards[name]


def _position(shard: str) -> str:
    """Of a shard's name, what it has in common with the shards of the same plan in other tables."""
    return shard.rpartition("-")[0]


def alignment_of(
    contract: TableContract, frames: StudentFrames, *, delay_frames: int, max_missing_frames: int
) -> FrameAlignment:
    """A table's frames to a student's."""
    return FrameAlignment(
        teacher_rate_hz=contract.frame_rate_hz,
        student_rate_hz=frames.frame_rate_hz,
        teacher_offset_s=contract.frame_offset_s,
        student_offset_s=frames.frame_offset_s,
        delay_frames=delay_frames,
        max_missing_frames=max_missing_frames,
    )


def table_source(
    contract: TableContract, alignment: FrameAlignment, *, codebooks: int | None, where: str
) -> TargetSource:
    """What rows of a table give: its codes, or its embeddings. `codebooks` as of `TableCodes`, `where` for messages."""
    if contract.payload == CODES:
        return TableCodes(contract, alignment, codebooks=codebooks)
    return TableEmbeddings(contract, alignment, where=where)
