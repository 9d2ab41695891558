"""Fixtures of the workers' tests: a table extracted from a tiny corpus."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from workers_fakes import make_contract, make_cuts, make_embedder, make_plan, make_quantizer

from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.extract import Extractor


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[..., IndexTable]:
    """`make_table(lengths_s, texts=, per_shard=)`: audio in tmp_path/audio, codes of the fake teacher."""

    def make(
        lengths_s: Sequence[float], *, texts: Sequence[str | None] = ("a cat", "a dog"), per_shard: int = 4
    ) -> IndexTable:
        cuts = make_cuts(tmp_path / "audio", lengths_s, texts=texts)
        plan, shards = make_plan(tmp_path / "plan", cuts, per_shard=per_shard)
        table = IndexTable.create(open_location(str(tmp_path / "table")), make_contract())
        extractor = Extractor(embedder=make_embedder(), tables=[(table, make_quantizer())], plan=plan)
        for shard in shards:
            extractor.run(shard)
        return table

    return make
