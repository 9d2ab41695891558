"""Several shards at a time: decoding, teacher and commit of different ones overlap, and a fault ends one alone."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from workers_fakes import (
    FakeTeacher,
    WatchedLoader,
    make_contract,
    make_cuts,
    make_embedder,
    make_plan,
    make_quantizer,
)

from mvqkd.models.teachers import EmbeddedBatch
from mvqkd.pipeline.cluster.metrics import COUNTERS, GAUGES
from mvqkd.storage.failures import read_failures
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable, WrittenShard
from mvqkd.workers.extract import SHARDS_AT_ONCE, Extractor, UnreadableShardError
from mvqkd.workers.shard import Shard

LONG_S = 20.0


class Watched(FakeTeacher):
    """Says which batch it is given, and waits before it until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[int]] = []
        self.began = threading.Event()
        self.before: Callable[[int], None] = lambda number: None

    def embed_batch(self, waveforms: Sequence[Tensor], layers: Sequence[int] | None = None) -> EmbeddedBatch:
        self.given.append([len(waveform) for waveform in waveforms])
        self.began.set()
        self.before(len(self.given) - 1)
        return super().embed_batch(waveforms, layers)


def make(
    folder: Path, lengths_s: Sequence[float], teacher: FakeTeacher, *, per_shard: int = 2
) -> tuple[Extractor, IndexTable, list[Shard]]:
    plan, shards = make_plan(folder / "plan", make_cuts(folder / "audio", lengths_s), per_shard=per_shard)
    table = IndexTable.create(open_location(str(folder / "table")), make_contract())
    embedder = make_embedder(teacher, batch_seconds=0.5)
    return Extractor(embedder=embedder, tables=[(table, make_quantizer())], plan=plan), table, shards


def bytes_of(table: IndexTable) -> dict[str, bytes]:
    return {name: table.location.read_bytes(name) for name in table.location.list()}


def test_shards_at_a_time_give_what_one_after_the_other_gives(tmp_path: Path) -> None:
    lengths = [0.3 + 0.01 * n for n in range(24)]
    extractor, table, shards = make(tmp_path / "a", lengths, FakeTeacher(), per_shard=3)
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        reports = list(pool.map(extractor.run, shards))
    again, same, _ = make(tmp_path / "b", lengths, FakeTeacher(), per_shard=3)
    # The audio lies elsewhere, which the rows say.
    (tmp_path / "b/audio").rename(tmp_path / "b/gone")
    again._plan = extractor._plan
    for shard in shards:
        again.run(shard)
    assert bytes_of(table) == bytes_of(same)
    assert sum(summary.rows for report in reports for _, summary in report.tables) == 24


def test_the_next_shard_is_decoded_while_one_has_the_teacher(tmp_path: Path) -> None:
    teacher = Watched()
    extractor, _, shards = make(tmp_path, [0.4, 0.39, 0.3, 0.29], teacher)
    loaded, ready = [], threading.Event()

    def see(cut: object) -> None:
        loaded.append(cut)
        if len(loaded) == 4:
            ready.set()

    extractor._feeder._loader = WatchedLoader(see)
    # The first batch waits for all audio of the second shard.
    teacher.before = lambda number: None if number else _must(ready.wait(LONG_S))
    run_in_order(extractor, shards, teacher)
    assert teacher.given == [[6400], [6240], [4800], [4640]]


def test_a_shard_is_written_while_the_next_has_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Watched()
    extractor, table, shards = make(tmp_path, [0.4, 0.39, 0.3, 0.29], teacher)
    second_began = threading.Event()
    teacher.before = lambda number: second_began.set() if number == 2 else None
    write = IndexTable.write_shard

    def slow(self: IndexTable, name: str, rows: object) -> WrittenShard:
        if "shard-000000" in name:
            _must(second_began.wait(LONG_S))
        return write(self, name, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(IndexTable, "write_shard", slow)
    run_in_order(extractor, shards, teacher)
    assert len(table.committed()) == 2


def run_in_order(extractor: Extractor, shards: Sequence[Shard], teacher: Watched) -> None:
    """Two shards at a time, of which the first one comes first."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(extractor.run, shards[0])
        _must(teacher.began.wait(LONG_S))
        second = pool.submit(extractor.run, shards[1])
        first.result(), second.result()


def _must(happened: bool) -> None:
    assert happened, "waited for what never came"


def test_a_fault_ends_one_shard_and_the_others_go_on(tmp_path: Path) -> None:
    extractor, table, shards = make(
        tmp_path, [0.4 + 0.001 * n for n in range(12)], FakeTeacher(), per_shard=4
    )
    for number in range(4, 8):
        (tmp_path / f"audio/u{number:03d}.wav").unlink()
    with ThreadPoolExecutor(3) as pool:
        first, second, third = (pool.submit(extractor.run, shard) for shard in shards)
    assert first.result() and third.result()
    with pytest.raises(UnreadableShardError):
        second.result()
    assert len(table.committed()) == 2


def test_a_shard_that_is_in_the_table_is_not_computed(tmp_path: Path) -> None:
    teacher = Watched()
    extractor, table, (shard,) = make(tmp_path, [0.4, 0.3], teacher)
    (tmp_path / "audio/u001.wav").unlink()
    first = extractor.run(shard)
    before, given = bytes_of(table), len(teacher.given)
    again = extractor.run(shard)
    assert (again.tables, again.num_left_out) == (first.tables, 1)
    assert (bytes_of(table), len(teacher.given)) == (before, given)
    assert len(read_failures(table.location)) == 1


def test_several_tables_of_one_pass(tmp_path: Path) -> None:
    """Each holds what a pass of its own would give, and the teacher runs once."""
    plan, (shard,) = make_plan(tmp_path / "plan", make_cuts(tmp_path / "audio", [0.4, 0.3]), per_shard=2)
    (tmp_path / "audio/u001.wav").rename(tmp_path / "audio/gone.wav")

    def table(name: str, layer: int, **changed: object) -> IndexTable:
        contract = make_contract(**{"num_codebooks": 2, **changed}, layer=layer)  # type: ignore[arg-type]
        return IndexTable.create(open_location(str(tmp_path / name)), contract)

    quantizers = {1: make_quantizer(), 3: make_quantizer(num_codebooks=4)}
    both = [table("first", 1), table("third", 3, num_codebooks=4)]
    teacher = Watched()
    pairs = [(each, quantizers[each.contract.layer]) for each in both]
    report = Extractor(embedder=make_embedder(teacher), tables=pairs, plan=plan).run(shard)
    assert len(teacher.given) == 1 and [name for name, _ in report.tables] == [
        shard.name(each.contract.digest()) for each in both
    ]
    alone = [table("first alone", 1), table("third alone", 3, num_codebooks=4)]
    for each in alone:
        pairs = [(each, quantizers[each.contract.layer])]
        Extractor(embedder=make_embedder(), tables=pairs, plan=plan).run(shard)
    assert [bytes_of(each) for each in both] == [bytes_of(each) for each in alone]
    assert [[failure.cut_id for failure in read_failures(each.location)] for each in both] == [["u001"]] * 2


def test_the_search_of_the_contract_is_used(tmp_path: Path) -> None:
    plan, (shard,) = make_plan(tmp_path / "plan", make_cuts(tmp_path / "audio", [0.4]), per_shard=1)
    torch.manual_seed(0)
    quantizer = make_quantizer()
    codes = {}
    for search in ("full", "fast"):
        table = IndexTable.create(open_location(str(tmp_path / search)), make_contract(search=search))
        Extractor(embedder=make_embedder(), tables=[(table, quantizer)], plan=plan).run(shard)
        (row,) = table.iter_rows()
        codes[search] = row["codes"]
    (waveform_T,) = (make_embedder().feeder._loader(cut) for cut in make_cuts(tmp_path / "audio", [0.4]))
    expected = quantizer.encode(FakeTeacher().encode([waveform_T])[0], as_bytes=False).numpy()
    np.testing.assert_array_equal(codes["full"], expected)
    assert make_contract(search="fast").digest() != make_contract().digest()


def test_meters_are_those_that_are_exported(tmp_path: Path) -> None:
    extractor, _, shards = make(tmp_path, [0.4, 0.3, 0.2, 0.1], FakeTeacher())
    notes: list[dict[str, dict[str, float]]] = []
    for shard in shards:
        extractor.run(shard, note=notes.append)
    last = notes[-1]["meters"]
    assert set(last) == set(COUNTERS) | set(GAUGES)
    assert last["audio_s"] == pytest.approx(1.0) and last["utterances"] == 4 and last["shards"] == 2
    assert last["computed_s"] >= last["audio_s"] and last["bytes_written"] > 0
    assert last["teacher_busy_s"] + last["quantizer_busy_s"] <= last["running_s"]
    for key in COUNTERS:
        values = [note["meters"][key] for note in notes]
        assert values == sorted(values), key


def test_a_shard_that_waits_is_not_decoded_whole(tmp_path: Path) -> None:
    """Of a shard that waits for its turn, no more than the first batches are decoded."""
    teacher = Watched()
    extractor, _, shards = make(tmp_path, [0.4 + 0.001 * n for n in range(20)], teacher, per_shard=10)
    loaded: list[object] = []
    extractor._feeder._loader = WatchedLoader(loaded.append)
    most: list[int] = []
    teacher.before = lambda number: most.append(len(loaded))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(extractor.run, shards))
    # A batch holds one of these; two more are ahead in each of the two shards.
    assert all(count <= number + 1 + 2 + 2 for number, count in enumerate(most[:10]))
