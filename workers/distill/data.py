"""The steps of a training: which batches each rank trains on, loaded ahead, and where to go on from.

All ranks walk through the same sequence of batches and each takes its own, so that a position in it holds for any
number of workers: a training that goes on with more or fewer of them trains on each batch once all the same.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import drawn_ahead
from mvqkd.workers.distill.examples import Batch, Example, ExampleMaker, RowToMake
from mvqkd.workers.distill.loading import loaded_batches
from mvqkd.workers.distill.rows import Choice, RowKey, Rows, Source, Use
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.stream import WINDOW_SHARDS, BatchStream, Planned, Position

MAX_LEFT_OUT = 0.05
ROWS_AHEAD = 16
"""Batches whose rows are read before they are needed: the first ones of a window wait for all of its shards."""


@dataclass(frozen=True, kw_only=True)
class DataState:
    """What was trained on so far: the next batch of either sequence, and seconds of audio out of it."""

    own: Position = field(default_factory=Position)
    codes: Position = field(default_factory=Position)
    own_s: float = 0.0
    codes_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DataState":
        """What `to_dict` gave."""
        positions = {name: Position(**content[name]) for name in ("own", "codes")}
        return cls(**positions, own_s=content["own_s"], codes_s=content["codes_s"])


@dataclass(frozen=True, kw_only=True)
class PlannedBatch:
    """A batch of a step: its rows, whether their transcripts count, its number among all ranks' batches of the step."""

    keys: tuple[RowKey, ...]
    epoch: int
    transcribed: bool
    number: int


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """Batches of one rank in one step, those without transcripts first, and the state after it."""

    batches: tuple[PlannedBatch, ...]
    after: DataState


@dataclass(frozen=True, kw_only=True)
class Step:
    """As `PlannedStep`, with the batches loaded."""

    batches: tuple[Batch, ...]
    after: DataState


class TrainingData:
    """Training steps of one rank.

    Args:
        sources: the tables that are read; the first is the run's own.
        choice: of the use of each row.
        own_s: seconds of audio of one epoch.
        make: an example of a row.
        specs: of the targets that examples hold, by the name of their head.
        settings: of the training.
        rank, world_size: this process among all.

    Raises:
        ValueError: an epoch is less than one step.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        choice: Choice,
        make: ExampleMaker,
        *,
        own_s: float,
        num_rows: int,
        specs: Mapping[str, TargetSpec],
        settings: DistillConfig,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._make, self.specs, self._settings = make, dict(specs), settings
        self._rank, self._world_size = rank, world_size
        self._where = ", ".join(source.table.location.url for source in sources)
        self.num_rows, self.epoch_s = num_rows, own_s
        main = sources if settings.pretrain else sources[:1]
        self._transcribed = not settings.pretrain
        use: Use = "codes" if settings.pretrain else "own"
        options: dict[str, Any] = {"batch_seconds": settings.batch_seconds, "seed": settings.seed}
        self._own = BatchStream(main, choice, use, **options)
        self._codes = BatchStream(sources, choice, "codes", **options) if settings.untranscribed else None
        keep = WINDOW_SHARDS + 1
        self._rows = [Rows(sources=sources, columns=make.columns, keep=keep) for _ in range(2)]
        self.left_out: dict[str, str] = {}
        if next(self.plan(DataState()), None) is None:
            raise ValueError(
                f"{self._where}: {num_rows} utterances make too few batches for {world_size} training workers and "
                f"distill.accumulate {settings.accumulate}; lower distill.workers, accumulate or batch_seconds"
            )

    def plan(self, state: DataState) -> Iterator[PlannedStep]:
        """The steps from a state to the end of the last epoch, which the last one of them ends.

        What is left at the end and makes no whole step is dropped.
        """
        before: PlannedStep | None = None
        for step in self._plan(state):
            if before is not None:
                yield before
            before = step
        if before is not None:
            yield replace(before, after=replace(before.after, own=Position(self._settings.epochs)))

    def _plan(self, state: DataState) -> Iterator[PlannedStep]:
        own = self._own.batches(state.own)
        codes = self._codes.batches(state.codes) if self._codes else iter(())
        world, number_of_own = self._world_size, self._world_size * self._settings.accumulate
        while True:
            mine: list[PlannedBatch] = []
            for number in range(number_of_own):
                batch = next(own)
                if batch.at.epoch >= self._settings.epochs:
                    return
                if number % world == self._rank:
                    mine.append(_planned(batch, self._transcribed, number))
                state = _moved(state, own=batch)
            others: list[PlannedBatch] = []
            number = number_of_own
            while state.codes_s < self._settings.untranscribed * state.own_s:
                # As many as of the others, so that it does not matter how ranks and accumulation share them.
                for _ in range(number_of_own):
                    batch = next(codes)
                    if number % world == self._rank:
                        others.append(_planned(batch, False, number))
                    state, number = _moved(state, codes=batch), number + 1
            yield PlannedStep(batches=(*others, *mine), after=state)

    def steps(self, state: DataState) -> Iterator[Step]:
        """The steps from a state on, loaded ahead.

        Raises:
            ValueError: more than 5 % of the rows turned out to be unusable.
        """
        planned: deque[PlannedStep] = deque()

        def rows() -> Iterator[list[RowToMake]]:
            for step in self.plan(state):
                planned.append(step)
                for batch in step.batches:
                    rows = self._rows[0 if batch.transcribed == self._transcribed else 1]
                    yield [
                        RowToMake(key=key, row=rows(key), transcribed=batch.transcribed, epoch=batch.epoch)
                        for key in batch.keys
                    ]

        with (
            closing(drawn_ahead(rows(), ahead=ROWS_AHEAD)) as drawn,
            closing(self._loaded(drawn)) as loaded,
        ):
            ready: list[Batch] = []
            for results in loaded:
                step = planned[0]
                plan = step.batches[len(ready)]
                ready.append(self._batch(results, plan))
                if len(ready) == len(step.batches):
                    yield Step(batches=tuple(ready), after=planned.popleft().after)
                    ready = []

    def _loaded(self, batches: Iterable[list[RowToMake]]) -> Generator[list[Example | UtteranceError]]:
        settings = self._settings
        return loaded_batches(
            batches, self._make, threads=settings.decode_threads, processes=settings.decode_processes
        )

    def _batch(self, results: Sequence[Example | UtteranceError], plan: PlannedBatch) -> Batch:
        good: list[Example] = []
        for result in results:
            if isinstance(result, UtteranceError):
                self._leave_out(result)
            else:
                good.append(result)
        return Batch(examples=tuple(good), specs=self.specs, transcribed=plan.transcribed, number=plan.number)

    def _leave_out(self, error: UtteranceError) -> None:
        self.left_out[error.cut_id] = error.problem
        if len(self.left_out) > max(1, MAX_LEFT_OUT * self.num_rows):
            raise ValueError(
                f"{len(self.left_out)} of {self.num_rows} utterances of {self._where} cannot be used, more than "
                f"{MAX_LEFT_OUT:.0%}; the last one: {error}"
            ) from error


def _planned(batch: Planned, transcribed: bool, number: int) -> PlannedBatch:
    return PlannedBatch(keys=batch.keys, epoch=batch.at.epoch, transcribed=transcribed, number=number)


def _moved(state: DataState, *, own: Planned | None = None, codes: Planned | None = None) -> DataState:
    if own is not None:
        state = replace(state, own=own.after, own_s=state.own_s + own.seconds)
    if codes is not None:
        state = replace(state, codes=codes.after, codes_s=state.codes_s + codes.seconds)
    return state
