"""The shards of a plan in parts: totals without them, one part at a time, damage named; lists of what is left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from mvqkd.storage.location import Location, open_location
from mvqkd.workers.plan import Plan, PlanError, read_plan, write_plan
from mvqkd.workers.shard import Shard, path_of
from mvqkd.workers.shards import ShardsWriter
from mvqkd.workers.spool import LinesSpool, read_lines_of


def shard(position: int) -> Shard:
    digest = f"{position:064x}"
    content = digest if position % 3 else f"{position + 1000:064x}"
    return Shard(
        position=position,
        path=path_of(position, content),
        digest=digest,
        content=content,
        num_cuts=7 + position,
        hours=0.1 * position,
    )


def plan_of(location: Location, count: int) -> Plan:
    writer = ShardsWriter(location)
    for position in range(count):
        writer.add(shard(position))
    plan = Plan(
        location=location,
        shards=writer.finish(),
        num_cuts=sum(writer.num_cuts),
        hours=writer.hours,
        num_refused=0,
        num_text_dropped=0,
        settings={},
        root=None,
    )
    write_plan(plan)
    return plan


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvqkd.workers.shards.SHARDS_PER_PART", 3)


@pytest.mark.usefixtures("small_parts")
def test_shards_are_a_sequence(tmp_path: Path) -> None:
    plan_of(open_location(str(tmp_path)), 8)
    plan = read_plan(open_location(str(tmp_path)))
    assert plan is not None
    wanted = [shard(position) for position in range(8)]
    assert list(plan.shards) == wanted == plan.shards[:] and plan.shards == wanted
    assert plan.shards != wanted[:-1] and plan.shards != [*wanted[:-1], wanted[0]]
    assert (plan.shards[0], plan.shards[7], plan.shards[-1]) == (wanted[0], wanted[7], wanted[7])
    assert plan.shards[2:7:2] == wanted[2:7:2]
    with pytest.raises(IndexError):
        plan.shards[8]
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("shards-")]) == 3


@pytest.mark.usefixtures("small_parts")
def test_totals_need_no_part(tmp_path: Path) -> None:
    location = open_location(str(tmp_path))
    first = plan_of(location, 8)
    for path in tmp_path.glob("shards-*"):
        path.rename(tmp_path / f"away-{path.name}")
    plan = read_plan(location)
    assert plan is not None
    assert (len(plan.shards), plan.num_cuts, plan.hours) == (8, first.num_cuts, first.hours)
    with pytest.raises(PlanError, match=r"shards-000003-.*jsonl: missing, .*run `mvqkd plan` again"):
        plan.shards[4]


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_was_changed_is_named(tmp_path: Path) -> None:
    plan = plan_of(open_location(str(tmp_path)), 8)
    (second,) = tmp_path.glob("shards-000003-*")
    second.write_bytes(second.read_bytes().replace(b"cuts", b"cats"))
    assert plan.shards[2] == shard(2)
    with pytest.raises(PlanError, match=r"shards-000003-.*changed since it was planned; run `mvqkd plan`"):
        list(plan.shards)


def test_the_plan_of_many_shards_is_small(tmp_path: Path) -> None:
    """A tenth of its 200,000 shards; what every command reads of them are the totals."""
    plan_of(open_location(str(tmp_path)), 20_000)
    assert (tmp_path / "plan.json").stat().st_size < 1_000
    plan = read_plan(open_location(str(tmp_path)))
    assert plan is not None and len(plan.shards) == 20_000
    assert plan.shards[19_999] == shard(19_999)


def test_totals_that_do_not_fit_the_parts_are_refused(tmp_path: Path) -> None:
    location = open_location(str(tmp_path))
    plan = plan_of(location, 3)
    data = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(data.replace('"num_shards": 3,', '"num_shards": 4,', 1))
    with pytest.raises(PlanError, match=r"plan.json: not a plan \(num_shards is 4, the parts have 3\)"):
        read_plan(location)
    write_plan(replace(plan, num_refused=2))
    assert read_plan(location) == replace(plan, num_refused=2)


def test_lines_are_written_in_objects_of_some_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvqkd.workers.spool.OBJECT_BYTES", 60)
    location = open_location(str(tmp_path))
    lines = [{"cut_id": f"u{number}", "reason": "é\u2028\ud83d"} for number in range(10)]

    def write(count: int) -> list[str]:
        spool = LinesSpool(location, "refused")
        for line in lines[:count]:
            spool.add(line)
        spool.write()
        assert list(read_lines_of(location, "refused")) == lines[:count]
        return sorted(location.list())

    assert write(10) == [*(f"refused-{n:06d}.jsonl" for n in range(1, 5)), "refused.jsonl"]
    # What a plan with fewer lines does not need is gone.
    assert write(3) == ["refused-000001.jsonl", "refused.jsonl"]
    assert write(0) == ["refused.jsonl"]
    location.replace("refused-000001.jsonl", b"[1]\n")
    with pytest.raises(
        PlanError, match=r"refused-000001.jsonl: damaged since it was planned \(a line is list"
    ):
        list(read_lines_of(location, "refused"))
