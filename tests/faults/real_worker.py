"""The `Extractor` itself, around a teacher that is a random matrix; does mischief."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mischief import Mischief, is_committed
from workers_fakes import RATE, FakeTeacher

from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.embed import Embedder
from mvqkd.workers.extract import Extractor, ExtractSettings, ShardReport
from mvqkd.workers.quantizer_record import load_quantizer
from mvqkd.workers.shard import Shard


@dataclass(frozen=True, kw_only=True)
class RealSettings(ExtractSettings):
    """As those of the run, but for the teacher."""

    mischief: Mischief

    def build(self) -> "FaultyExtractor":
        self.mischief.begin()
        loader = AudioLoader(RATE, s3=self.embedder.options, root=self.embedder.root)
        batch_seconds = self.embedder.batch_seconds
        return FaultyExtractor(
            embedder=Embedder(FakeTeacher(), loader, batch_seconds=batch_seconds, decode_threads=2),
            tables=[(each.table, load_quantizer(each.quantizer)[0]) for each in self.tables],
            plan=self.plan,
            max_unreadable=self.max_unreadable,
            mischief=self.mischief,
        )


class FaultyExtractor(Extractor):
    """Says what it computes, and does mischief."""

    def __init__(self, *, mischief: Mischief, **settings: Any) -> None:
        super().__init__(**settings)
        self._mischief = mischief
        self._here = threading.local()

    def run(
        self,
        shard: Shard,
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> ShardReport:
        self._here.shard, self._here.committed = shard, is_committed(shard, self._tables[0])

        def noted(content: dict[str, Any]) -> None:
            note(content)
            self._mischief.strike(shard)

        report = super().run(shard, last_attempt=last_attempt, note=noted)
        self._mischief.strike_after_put(shard)
        return report

    def _code(self, *arguments: Any) -> Any:
        self._mischief.computes(self._here.shard, committed=self._here.committed)
        return super()._code(*arguments)
