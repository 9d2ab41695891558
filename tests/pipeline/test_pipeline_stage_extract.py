"""The extract stage, in this process: bad utterances, bad shards, foreign shards, places that are not shared."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import Done, copy_of, make_run, objects, run_tree, write_corpus

from mvqkd.pipeline.cluster.pool import PoolHere
from mvqkd.pipeline.errors import PoolError, StageError
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.extracted import STATE
from mvqkd.pipeline.stages.plan import need_plan, plan_stage
from mvqkd.storage.failures import read_failures
from mvqkd.storage.location import Location
from mvqkd.storage.shared_place import SharedPlaceError
from mvqkd.storage.table import IndexTable
from mvqkd.workers.plan import Shard

pytestmark = pytest.mark.integration


def test_bad_utterances_are_left_out_and_listed(done: Done, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", train=6)
    tree = {**copy_of(done, tmp_path, "quantizer"), "corpus": {"root": str(tmp_path / "corpus")}}
    run = make_run(tree, tmp_path)
    (tmp_path / "corpus/audio/train/train-004.flac").unlink()
    assert plan_stage(run)["train_refused"] == 1
    broken = tmp_path / "corpus/audio/train/train-001.flac"
    broken.write_bytes(broken.read_bytes()[:3000])
    summary = extract_stage(run)
    assert (summary["utterances_left_out"], summary["shards_failed"], summary["table"]["rows"]) == (1, 0, 4)
    (failure,) = read_failures(run.table)
    assert (failure.cut_id, failure.stage) == ("train-001", "load")
    assert str(broken) in failure.message
    again = extract_stage(run)
    assert again["shards_extracted"] == 0
    assert again["utterances_left_out"] == 1


def test_a_shard_that_keeps_failing_is_set_aside(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(copy_of(done, tmp_path, "quantizer", "plan"), tmp_path)
    plan = need_plan(run, "train")
    damaged = tmp_path / "run/plan/train" / plan.shards[1].path
    whole_bytes = damaged.read_bytes()
    damaged.unlink()
    summary = extract_stage(run)
    assert (summary["shards_failed"], summary["shards_extracted"]) == (1, len(plan.shards) - 1)
    (failure,) = read_failures(run.table)
    assert (failure.cut_id, failure.attempts) == (None, 3)
    assert str(damaged) in failure.message
    last = max(name for name in run.table.list() if name.startswith("shard-"))
    run.table.remove(last)
    begun: list[int] = []

    def seen(pool: PoolHere, items: Sequence[Shard], *rest: Any, **options: Any) -> Any:
        begun.extend(shard.position for shard in items)
        return in_this_process(pool, items, *rest, **options)

    in_this_process = PoolHere.run
    monkeypatch.setattr(PoolHere, "run", seen)
    extract_stage(run)
    assert begun == [len(plan.shards) - 1, 1], "what was given up comes last"
    damaged.write_bytes(whole_bytes)
    assert extract_stage(run)["shards_extracted"] == 1
    assert read_failures(run.table) == []
    assert objects(run.table) == objects(make_run(done[0], tmp_path).table)


def test_another_layer_or_teacher_than_the_quantizers(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer")
    with pytest.raises(
        StageError, match=r"fitted on layer 2 of the teacher, but teacher.layer is 1; set it back"
    ):
        extract_stage(make_run(tree, tmp_path, "teacher.layer=1"))
    with pytest.raises(PoolError, match="fitted on"):
        extract_stage(make_run(tree, tmp_path, "teacher.normalize=false"))


def test_shards_of_an_earlier_plan_are_not_mixed_in(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "quantizer", "table")
    before = objects(make_run(tree, tmp_path).table)
    run = make_run(tree, tmp_path, "extract.shard_hours=0.002")
    with pytest.raises(StageError, match=r"shards are not of this plan, such as shard-.*delete these"):
        extract_stage(run)
    assert objects(run.table) == before


def test_audio_that_is_not_mounted_costs_the_shard_and_not_the_utterances(done: Done, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", train=6)
    tree = {**copy_of(done, tmp_path, "quantizer"), "corpus": {"root": str(tmp_path / "corpus")}}
    run = make_run(tree, tmp_path, "extract.shard_hours=0.1")
    plan_stage(run)
    (tmp_path / "corpus/audio").rename(tmp_path / "elsewhere")
    summary = extract_stage(run)
    assert (summary["shards_failed"], summary["table"]["rows"]) == (1, 0)
    (failure,) = read_failures(run.table)
    assert "utterances cannot be read" in failure.message
    (tmp_path / "elsewhere").rename(tmp_path / "corpus/audio")
    summary = extract_stage(run)
    assert (summary["shards_failed"], summary["table"]["rows"], read_failures(run.table)) == (0, 6, [])


def test_a_worker_larger_than_this_machine_is_refused(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "quantizer"), tmp_path, "extract.cpus_per_actor=64.0")
    with pytest.raises(ValueError, match=r"extract\.cpus_per_actor.* a worker wants 64 CPUs"):
        extract_stage(run)


def test_a_corpus_that_moved_keeps_its_shards(done: Done, tmp_path: Path) -> None:
    write_corpus(tmp_path / "old", train=6)
    tree = copy_of(done, tmp_path, "quantizer")
    run = make_run({**tree, "corpus": {"root": str(tmp_path / "old")}}, tmp_path)
    plan_stage(run)
    extract_stage(run)
    before = objects(run.table)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = make_run({**tree, "corpus": {"root": f"{tmp_path}/new/"}}, tmp_path)
    plan_stage(moved)
    summary = extract_stage(moved)
    assert (summary["shards_extracted"], summary["shards_found_done"]) == (
        0,
        len(need_plan(moved, "train").shards),
    )
    assert objects(moved.table) == before


def test_the_figures_do_not_depend_on_how_often_it_was_interrupted(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    expected = make_run(done[0], tmp_path).reports.read("extract")["table"]
    run = make_run(tree, tmp_path)

    def figures() -> dict[str, object]:
        extract_stage(run)
        return {**run.reports.read("extract")["table"], "url": expected["url"]}

    assert figures() == expected  # of footers alone
    assert (tmp_path / "run" / STATE).is_file()
    first = sorted((tmp_path / "run/table").glob("shard-*.parquet"))[0]
    first.unlink()
    assert figures() == expected  # of one shard and footers
    assert figures() == expected  # of what was kept


def test_with_nothing_to_do_the_table_is_listed_once_and_no_shard_is_read(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table"), tmp_path)
    extract_stage(run)
    listed: list[str] = []
    listing = Location.list

    def count(location: Location, path: str = "") -> dict[str, int]:
        listed.append(location.full_url(path) if path else location.url)
        return listing(location, path)

    monkeypatch.setattr(Location, "list", count)
    monkeypatch.setattr(IndexTable, "summary_of", lambda *_: pytest.fail("a shard was read"))
    assert extract_stage(run)["shards_found_done"] > 3
    assert [url for url in listed if url.startswith(run.table.url)] == [run.table.url]


@pytest.mark.parametrize("text", ["", "[]", '{"table": 3}', '{"a": 1, "a": 2}'])
def test_what_was_kept_of_the_table_may_be_damaged(
    done: Done, tmp_path: Path, text: str, capsys: Any
) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table"), tmp_path)
    (tmp_path / "run" / STATE).write_text(text)
    assert extract_stage(run)["table"]["rows"] == 12
    assert f"{STATE}: damaged" in capsys.readouterr().err
    extract_stage(run)
    assert "damaged" not in capsys.readouterr().err


def test_results_that_are_not_seen_here_are_not_believed(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with workers on machines that do not see the driver's disk: what they wrote is somewhere else."""
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer"), tmp_path)
    write = IndexTable.write_shard

    def elsewhere(table: IndexTable, name: str, rows: object) -> object:
        written = write(table, name, rows)
        (tmp_path / "run/table" / table.shard_path(name)).unlink()
        return written

    monkeypatch.setattr(IndexTable, "write_shard", elsewhere)
    with pytest.raises(SharedPlaceError, match=r"s3://bucket/prefix, or a folder mounted"):
        extract_stage(run)


def test_a_plan_that_a_worker_does_not_see_is_named(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer"), tmp_path)
    need_plan(run, "train")
    from mvqkd.pipeline.cluster.pool import Resources
    from mvqkd.pipeline.stages.sizing import embedder_settings, extract_share
    from mvqkd.workers.extract import ExtractSettings, TableSettings
    from mvqkd.workers.quantizer_record import load_record

    shutil.rmtree(tmp_path / "run/plan")
    share = extract_share(run, Resources(cpus=1, gpus=0, machine_cpus=1))
    contract = load_record(run.quantizer).contract(search=run.config.extract.search)
    table = IndexTable.create(run.table, contract)
    settings = ExtractSettings(
        embedder=embedder_settings(run, share),
        tables=(TableSettings(table=table, quantizer=run.quantizer),),
        plan=run.plan("train"),
        max_unreadable=0.2,
    )
    with pytest.raises(SharedPlaceError, match=r"plan\.json: another process of this run wrote it"):
        settings.build()


def test_before_its_time_it_says_what_to_run(corpus_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="mvqkd fit"):
        extract_stage(make_run(run_tree(corpus_root, teacher_path, tmp_path / "run"), tmp_path))
