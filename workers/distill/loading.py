"""Examples loaded ahead, in threads or, where these do not keep up with a GPU, in processes."""

import pickle
from collections.abc import Generator, Iterable
from typing import Any, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset

from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import BATCHES_AHEAD, decoded_batches

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = TypeVar("Given", contravariant=True)
Made = TypeVar("Made", covariant=True)


class Loads(Protocol[Given, Made]):
    """What loads an item, and can begin with that earlier (see `DecodedBatches`)."""

    def __call__(self, item: Given, /) -> Made:
        """The item, loaded."""

    def begin(self, item: Given, /) -> None:
        """Let a store begin to send what it takes."""


def loaded_batches(
    batches: Iterable[list[Item]], load: "Loads[Item, Result]", *, threads: int, processes: int = 0
) -> Generator[list[Result | UtteranceError]]:
    """The results of `load` for every item of every batch, in order; see `DecodedBatches`.

    Args:
        batches: may be a generator; it is drawn on in the caller's thread.
        load: used in threads, or in processes that it is pickled for once.
        threads: of this process, unless there are `processes`.
        processes: each of which loads whole batches.
    """
    if not processes:
        yield from decoded_batches(batches, load, threads=threads, begin=load.begin)
        return
    loader: DataLoader[Any] = DataLoader(
        _Loads(load),
        sampler=batches,  # any iterable of indexes, and an index may be anything
        batch_size=None,
        num_workers=processes,
        prefetch_factor=BATCHES_AHEAD,
        # Not forked: this process has threads, and perhaps a connection to an object store.
        multiprocessing_context="spawn",
    )
    yield from loader


class _Loads(Dataset[Any]):
    """Takes a list of items for an index."""

    def __init__(self, load: Loads[Any, Any]) -> None:
        # As bytes: torch would hand the tensors in it over by file handles, of which there may be many.
        self._pickled = pickle.dumps(load)
        self._load: Loads[Any, Any] | None = None

    def __getitem__(self, items: list[Any]) -> list[Any]:
        if self._load is None:
            self._load = pickle.loads(self._pickled)  # noqa: S301 (from the process that started this one)
        results: list[Any] = []
        for item in items:
            self._load.begin(item)
        for item in items:
            try:
                results.append(self._load(item))
            except UtteranceError as error:
                results.append(error)
        return results
