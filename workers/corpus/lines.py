"""The lines of a cut manifest as a plan keeps them, parsed in several processes where there are many.

The processes are started anew (spawn): none inherits a connection to an object store or a lock from this one, and none
that meets only usual cuts has to import Lhotse. Blocks go out and come back in order, and few are on the way, so
neither the plan nor the memory depends on how many processes there are.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from mvqkd.workers.corpus.blocks import Block, read_blocks
from mvqkd.workers.corpus.config import AS_IT_IS, CorpusConfig
from mvqkd.workers.corpus.files import CorpusError
from mvqkd.workers.corpus.quick import QuickCuts
from mvqkd.workers.corpus.refusals import BadLine
from mvqkd.workers.cuts import Planned, Refused, planned

if TYPE_CHECKING:
    from mvqkd.workers.corpus.corpus import Corpus

BLOCKS_HERE = 16
"""Of a manifest are parsed in this process: others take a second to start."""
_ON_THE_WAY = 2  # blocks for each process, besides that in hand

Entry = Planned | Refused | BadLine


class CutLines:
    """Turns the lines of a block into what a plan keeps of them. Can be pickled, and is light until it meets a cut
    that is not usual.

    Args:
        config, sample_rate_hz, frame_shift_s: as of `Corpus`.
        root: `Corpus.root`.
        speeds: as of `Corpus`.

    Attributes:
        quick: the entry of a usual cut; None for all others.
    """

    def __init__(
        self,
        config: CorpusConfig,
        *,
        sample_rate_hz: int,
        frame_shift_s: float,
        root: str | None,
        speeds: Sequence[float] = AS_IT_IS,
    ) -> None:
        self._config, self._rate_hz, self._frame_shift_s = config, sample_rate_hz, frame_shift_s
        self._root, self._speeds = root, tuple(speeds)
        self.quick = QuickCuts(config, sample_rate_hz=sample_rate_hz, root=root)

    def __call__(self, block: Block) -> list[Entry]:
        """The entries of the lines, those of empty ones left out."""
        entries: list[Entry] = []
        for number, line in block.lines():
            # Lhotse makes copies at other speeds.
            entry = self.quick(line) if self._speeds == AS_IT_IS else None
            if entry is not None:
                entries.append(entry)
            else:
                entries += self.the_long_way(line, f"{block.url}:{number}")
        return entries

    def the_long_way(self, line: str, where: str) -> list[Entry]:
        """What becomes of a line by way of Lhotse's objects: several entries where it is cut into windows."""
        from mvqkd.workers.corpus.manifest import cut_of_line

        cut = cut_of_line(line, where, recordings=self._config.window_s is not None)
        if isinstance(cut, Refused | BadLine):
            return [cut]
        return [
            one if isinstance(one, Refused) else planned(one, root=self._root)
            for one in self._corpus.check(cut)
        ]

    @cached_property
    def _corpus(self) -> "Corpus":
        # Here, because it brings Lhotse and torch along.
        from mvqkd.workers.corpus.corpus import Corpus

        return Corpus(
            self._config,
            sample_rate_hz=self._rate_hz,
            frame_shift_s=self._frame_shift_s,
            speeds=self._speeds,
        )


def planned_lines(
    url: str, options: Mapping[str, Any], work: CutLines, *, processes: int
) -> Iterator[Planned | Refused]:
    """What a plan keeps of each line of a manifest, in order.

    Raises:
        CorpusError: the file is missing or damaged, most of its first lines are no cuts, or a process is ended.
    """
    from mvqkd.workers.corpus.manifest import only_cuts

    blocks = read_blocks(url, options)
    done: Iterator[list[Entry]] = (
        map(work, blocks) if processes < 2 else _in_processes(blocks, work, processes)
    )
    entries: Iterator[Entry] = (entry for of_block in done for entry in of_block)
    try:
        cuts: Iterator[Planned | Refused] = only_cuts(entries)
        yield from cuts
    except BrokenProcessPool as error:
        raise CorpusError(
            f"{url}: a process that parses it was ended from outside, perhaps for want of memory; plan again"
        ) from error


def _in_processes(
    blocks: Iterator[Block], work: Callable[[Block], list[Entry]], processes: int
) -> Iterator[list[Entry]]:
    yield from map(work, islice(blocks, BLOCKS_HERE))
    first = next(blocks, None)
    if first is None:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(work,)) as pool:
        waiting: deque[Future[list[Entry]]] = deque([pool.submit(_do, first)])
        try:
            for block in blocks:
                waiting.append(pool.submit(_do, block))
                if len(waiting) > processes * (1 + _ON_THE_WAY):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_work: Callable[[Block], list[Entry]]  # of a process that was started here


def _begin(work: Callable[[Block], list[Entry]]) -> None:
    global _work
    _work = work


def _do(block: Block) -> list[Entry]:
    return _work(block)
