"""What happens to workers: killed, hanging, asked to end, deadly shards. The table is that of an undisturbed run."""

import pytest
from faults_rig import Faults

from mvqkd.pipeline.cluster import hand
from mvqkd.storage.failures import read_failures

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


def test_killed_in_the_middle_of_a_shard_and_between_put_and_report(faults: Faults) -> None:
    mischief = faults.mischief(faults={2: ("kill",), 5: ("kill_after_put",)})
    summary = faults.extract(mischief)
    assert (mischief.met("kill"), mischief.met("kill_after_put")) == (1, 1)
    assert summary["shards_failed"] == 0
    assert mischief.computed().count(5) == 1
    faults.check()


def test_a_shard_that_always_kills_its_worker_is_set_aside(faults: Faults) -> None:
    mischief = faults.mischief(faults={3: ("deadly",)})
    summary = faults.extract(mischief)
    others = faults.rig.num_shards - 1
    assert (summary["shards_failed"], summary["shards_extracted"]) == (1, others)
    (failure,) = read_failures(faults.run.table)
    assert (failure.stage, failure.attempts, failure.error) == ("shard", 3, "ActorDiedError")
    # Once alone or with others, then alone: nobody else was charged.
    assert 3 <= mischief.computed().count(3) <= 4
    after = faults.mischief()
    assert faults.extract(after)["shards_extracted"] == 1
    faults.check()


def test_a_hanging_shard_is_ended_by_what_others_take(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand, "SHORTEST_S", 1.0)
    monkeypatch.setattr(hand, "TIMES_AS_LONG", 3.0)
    mischief = faults.mischief(faults={6: ("hang",), 1: ("raise",)})
    summary = faults.extract(mischief)
    assert (mischief.met("hang"), mischief.met("raise"), summary["shards_failed"]) == (1, 1, 0)
    assert mischief.computed().count(1) == 2
    faults.check()


def test_a_worker_that_is_asked_to_end_gives_its_shards_back(faults: Faults) -> None:
    # One attempt each: a shard that is given back is not charged.
    mischief = faults.mischief(faults={4: ("term",)})
    summary = faults.with_keys("extract", max_attempts=1).extract(mischief)
    assert (mischief.met("term"), summary["shards_failed"]) == (1, 0)
    assert mischief.computed().count(4) == 2
    faults.check()
