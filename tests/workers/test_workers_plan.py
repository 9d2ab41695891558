"""The shard plan: shards, names, what is left out, and ids that repeat."""

import json
from pathlib import Path

import pytest
from lhotse import MonoCut, Recording

from mvqkd.storage.location import open_location
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig
from mvqkd.workers.cuts import Refused
from mvqkd.workers.duplicates import CutIds
from mvqkd.workers.plan import PlanError, read_plan, read_refused, read_shard_cuts
from mvqkd.workers.planner import make_plan


def cut(number: int, duration_s: float = 10.0) -> MonoCut:
    recording = Recording(
        id=f"r{number}",
        sources=[],
        sampling_rate=16_000,
        num_samples=int(16_000 * duration_s),
        duration=duration_s,
    )
    return MonoCut(id=f"c{number}", start=0.0, duration=duration_s, channel=0, recording=recording)


def test_shards_are_consecutive_and_bounded(tmp_path: Path) -> None:
    location = open_location(str(tmp_path))
    plan = make_plan((cut(n) for n in range(25)), location, shard_hours=60 / 3600, settings={})
    assert [shard.num_cuts for shard in plan.shards] == [6, 6, 6, 6, 1]
    ids = [c.id for shard in plan.shards for c in read_shard_cuts(location, shard)]
    assert ids == [f"c{n}" for n in range(25)]
    assert plan.hours == pytest.approx(250 / 3600)


def test_planning_again_changes_nothing(tmp_path: Path) -> None:
    location = open_location(str(tmp_path))
    first = make_plan((cut(n) for n in range(9)), location, shard_hours=0.01, settings={"a": 1})
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}

    def unread() -> object:
        raise AssertionError("an existing plan needs no corpus")
        yield

    again = make_plan(unread(), location, shard_hours=0.01, settings={"a": 1})
    assert again == first == read_plan(location)
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}


def test_a_changed_corpus_is_read_when_asked(tmp_path: Path) -> None:
    location = open_location(str(tmp_path))
    make_plan((cut(n) for n in range(3)), location, shard_hours=1.0, settings={})
    before = (tmp_path / "plan.json").read_bytes()
    again = make_plan((cut(n) for n in range(3)), location, shard_hours=1.0, settings={}, reuse=False)
    assert (again.num_cuts, (tmp_path / "plan.json").read_bytes()) == (3, before)
    longer = make_plan((cut(n) for n in range(4)), location, shard_hours=1.0, settings={}, reuse=False)
    assert longer.num_cuts == 4
    assert read_plan(location) == longer


def test_a_plan_in_another_place_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_plan(
            (cut(n) for n in range(9)), open_location(str(tmp_path / name)), shard_hours=0.01, settings={}
        )
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]


def test_names_follow_position_content_and_contract(tmp_path: Path) -> None:
    plans = [
        make_plan(cuts, open_location(str(tmp_path / str(number))), shard_hours=1.0, settings={})
        for number, cuts in enumerate(([cut(1)], [cut(1)], [cut(1, 9.0)]))
    ]
    names = [plan.shards[0].name("contract") for plan in plans]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("shard-000000-")
    assert plans[0].shards[0].name("another") != names[0]


def test_refused_utterances_are_listed(tmp_path: Path) -> None:
    refused = Refused(cut_id="bad", reason="has no audio")
    long = Refused(cut_id="é\ud83d", reason="lasts \ud83d", duration_s=40.0)
    plan = make_plan([cut(1), refused, cut(2)], open_location(str(tmp_path)), shard_hours=1.0, settings={})
    assert (plan.num_cuts, plan.num_refused) == (2, 1)
    lines = plan.location.read_bytes("refused.jsonl").decode().splitlines()
    assert [json.loads(line) for line in lines] == [{"cut_id": "bad", "reason": "has no audio"}]
    assert read_refused(plan.location) == [refused]
    # Half of a surrogate pair is no character of a file, but JSON has an escape for it.
    plan = make_plan([cut(1), long], plan.location, shard_hours=1.0, settings={}, reuse=False)
    assert read_refused(plan.location) == [long]
    plan.location.replace("refused.jsonl", b'{"cut_id": "a", "rea')
    with pytest.raises(
        PlanError, match=r"refused.jsonl: damaged since it was planned .*run `mvqkd plan` again"
    ):
        read_refused(plan.location)


def test_nothing_usable_is_an_error_with_reasons(tmp_path: Path) -> None:
    refused = [Refused(cut_id="bad", reason="has no audio")]
    with pytest.raises(ValueError, match="1 refused: bad has no audio"):
        make_plan(refused, open_location(str(tmp_path)), shard_hours=1.0, settings={})
    assert read_plan(open_location(str(tmp_path))) is None


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'c1' occurs 2 times"):
        make_plan([cut(1), cut(1)], open_location(str(tmp_path)), shard_hours=1.0, settings={})


def test_ids_that_repeat_in_other_shards_are_refused_with_both_places(tmp_path: Path) -> None:
    cuts = [cut(n) for n in (0, 1, 2, 3, 1, 4, 5, 1, 4)]
    with pytest.raises(PlanError) as caught:
        make_plan(cuts, open_location(str(tmp_path)), shard_hours=20 / 3600, settings={})
    message = str(caught.value)
    assert "'c1' occurs 3 times: shard 0 cut 1 (r1) and shard 2 cut 0 (r1)" in message
    assert "'c4' occurs 2 times: shard 2 cut 1 (r4) and shard 4 cut 0 (r4)" in message
    assert message.endswith("ids must be unique: rename the cuts, or remove all but one")
    assert read_plan(open_location(str(tmp_path))) is None


@pytest.mark.parametrize("modulus", [1, 2, 5])
def test_ids_whose_hashes_are_equal_are_not_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modulus: int
) -> None:
    monkeypatch.setattr("mvqkd.workers.duplicates._hash", lambda cut_id: int(cut_id[1:]) % modulus)
    location = open_location(str(tmp_path))
    plan = make_plan([cut(n) for n in range(20)], location, shard_hours=30 / 3600, settings={})
    assert plan.num_cuts == 20
    with pytest.raises(
        PlanError, match=r"^cut id 'c7' occurs 2 times: shard 2 cut 1 \(r7\) and shard 6 cut 2"
    ):
        make_plan(
            [cut(n) for n in (*range(20), 7)], location, shard_hours=30 / 3600, settings={}, reuse=False
        )


def test_ids_of_millions_of_cuts_take_8_bytes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = CutIds()
    for number in range(200_000):
        ids.add(f"cut-{number}")
    assert ids._hashes.itemsize == 8 and len(ids) == 200_000
    assert ids.problem([100_000, 100_000], lambda _: pytest.fail("nothing has to be read again")) is None


@pytest.mark.shared
def test_duplicates_of_the_product(tmp_path: Path, shared: Path) -> None:
    corpus = CorpusConfig(
        format="cuts", root=str(shared / "corpora/an4"), train=str(shared / "cases/duplicates.jsonl")
    )
    cuts = Corpus(corpus, sample_rate_hz=16_000).cuts("train")
    with pytest.raises(PlanError, match=r"occurs 2 times: shard \d+ cut \d+ \(.*flac\) and shard"):
        make_plan(cuts, open_location(str(tmp_path)), shard_hours=4 / 3600, settings={})


def test_memory_is_that_of_one_shard(tmp_path: Path) -> None:
    """The corpus is a stream: while shard n is filled, shard n - 1 is already written."""
    location = open_location(str(tmp_path))
    seen: list[int] = []

    def stream() -> object:
        for number in range(12):
            seen.append(len([p for p in tmp_path.iterdir() if p.name.startswith("cuts-")]))
            yield cut(number)

    make_plan(stream(), location, shard_hours=30 / 3600, settings={})
    assert seen == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
