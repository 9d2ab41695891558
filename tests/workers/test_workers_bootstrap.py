"""Intervals against what is known by mathematics, against kaldialign, and where nothing can be said."""

import math

import numpy as np
import pytest

from mvqkd.workers.recognize.bootstrap import Bootstrap

NOBODY = [None] * 400


def drawn(seed: int, *rates: float, utterances: int = 400) -> tuple[list[int], list[list[int]]]:
    """Words of each utterance, and independent errors of systems with these rates."""
    rng = np.random.default_rng(seed)
    words = rng.integers(3, 20, size=utterances)
    return words.tolist(), [rng.binomial(words, rate).tolist() for rate in rates]


def test_the_interval_of_a_share_is_the_one_of_statistics() -> None:
    """With one word in every utterance a WER is a share, whose standard error is known."""
    errors = [1] * 80 + [0] * 320
    interval = Bootstrap({"a": errors}, [1] * 400, NOBODY).interval("a")
    half = 1.96 * math.sqrt(0.2 * 0.8 / 400)
    assert interval is not None
    assert interval.low == pytest.approx(0.2 - half, abs=0.004)
    assert interval.high == pytest.approx(0.2 + half, abs=0.004)


def test_the_same_seed_gives_the_same_draws_and_another_one_others() -> None:
    words, (errors,) = drawn(0, 0.1)
    first, again = (Bootstrap({"a": errors}, words, NOBODY).interval("a") for _ in range(2))
    other = Bootstrap({"a": errors}, words, NOBODY, seed=2).interval("a")
    assert first == again and first is not None and other is not None
    assert first != other
    assert first.low == pytest.approx(other.low, abs=0.002)


def test_draws_in_parts_are_of_all_units(monkeypatch: pytest.MonkeyPatch) -> None:
    words, (errors,) = drawn(0, 0.1)
    whole = Bootstrap({"a": errors}, words, NOBODY).interval("a")
    monkeypatch.setattr("mvqkd.workers.recognize.bootstrap._DRAWN_AT_ONCE", 1300)
    parts = Bootstrap({"a": errors}, words, NOBODY).interval("a")
    assert whole is not None and parts is not None
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.003)


def test_errors_that_go_with_the_speaker_make_the_interval_wider() -> None:
    """Twenty speakers, half of them not understood at all: what matters is whom one meets."""
    speakers = [f"s{number % 20}" for number in range(400)]
    errors = [5 if number % 20 < 10 else 0 for number in range(400)]
    words = [10] * 400
    over_speakers = Bootstrap({"a": errors}, words, speakers)
    over_utterances = Bootstrap({"a": errors}, words, NOBODY)
    assert (over_speakers.over, over_speakers.units) == ("speakers", 20)
    assert (over_utterances.over, over_utterances.units) == ("utterances", 400)
    wide, narrow = over_speakers.interval("a"), over_utterances.interval("a")
    assert wide is not None and narrow is not None
    # Standard errors are 0.25 / sqrt(units).
    assert wide.high - wide.low == pytest.approx(
        2 * 1.96 * 0.25 / math.sqrt(20), rel=0.12
    )  # in steps of 0.025
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 0.25 / math.sqrt(400), rel=0.08)


@pytest.mark.parametrize("speakers", [[*["ann"] * 399, None], ["ann"] * 400])
def test_utterances_are_drawn_where_speakers_cannot_be(speakers: list[str | None]) -> None:
    words, (errors,) = drawn(0, 0.1)
    assert Bootstrap({"a": errors}, words, speakers).over == "utterances"


def test_pairs_are_compared_in_the_same_draws() -> None:
    """One error less in every tenth utterance: certain, though both intervals overlap nearly wholly."""
    words, (errors,) = drawn(1, 0.3)
    fewer = [max(0, e - (number % 10 == 0)) for number, e in enumerate(errors)]
    bootstrap = Bootstrap({"before": errors, "after": fewer}, words, NOBODY)
    before, after = bootstrap.interval("before"), bootstrap.interval("after")
    assert before is not None and after is not None and after.high > before.low
    found = bootstrap.compare("after", "before")
    assert found.is_certain and found.better == 1.0
    assert found.difference == pytest.approx((sum(fewer) - sum(errors)) / sum(words))
    assert found.difference_low is not None and found.difference_high is not None
    assert found.difference_low < found.difference < found.difference_high < 0
    assert found.relative_reduction == pytest.approx(1 - sum(fewer) / sum(errors))
    assert found.relative_low is not None and found.relative_high is not None
    assert 0 < found.relative_low < found.relative_reduction < found.relative_high


def test_a_pair_turned_round_is_the_same_pair() -> None:
    words, (one, other) = drawn(2, 0.1, 0.12)
    bootstrap = Bootstrap({"a": one, "b": other}, words, NOBODY)
    there, back = bootstrap.compare("a", "b"), bootstrap.compare("b", "a")
    assert there.difference_low is not None and there.better is not None and back.better is not None
    assert (there.difference_low, there.difference) == (-(back.difference_high or 0), -back.difference)
    assert there.better + back.better == pytest.approx(1)


def test_equal_systems_are_not_told_apart() -> None:
    words, (errors,) = drawn(3, 0.1)
    found = Bootstrap({"a": errors, "b": errors}, words, NOBODY).compare("a", "b")
    assert (found.difference, found.better, found.relative_reduction) == (0, 0.5, 0)
    assert (found.difference_low, found.difference_high) == (0, 0) and not found.is_certain


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """95 %, and less a little: 300 test parts with a WER of 0.15 and speakers that differ."""
    rng = np.random.default_rng(5)
    speakers = [f"s{number // 10}" for number in range(400)]
    held = 0
    for _ in range(300):
        rates = np.repeat(rng.beta(3, 17, size=40), 10)
        errors = rng.binomial(10, rates).tolist()
        interval = Bootstrap({"a": errors}, [10] * 400, speakers, draws=1000).interval("a")
        assert interval is not None
        held += interval.low <= 0.15 <= interval.high
    assert 0.90 <= held / 300 <= 0.98


def test_without_errors_and_with_one_utterance() -> None:
    perfect = Bootstrap({"a": [0] * 400, "b": [1] * 400}, [5] * 400, NOBODY)
    worse, better = perfect.compare("b", "a"), perfect.compare("a", "b")
    assert worse.relative_reduction is worse.relative_low is worse.relative_high is None
    assert worse.difference_low == worse.difference_high == pytest.approx(0.2)
    assert (better.relative_reduction, better.relative_low, better.better) == (1, 1, 1)
    alone = Bootstrap({"a": [1], "b": [0]}, [4], ["ann"])
    assert alone.interval("a") is None
    found = alone.compare("b", "a")
    assert found.difference == -0.25 and found.relative_reduction == 1
    assert found.difference_low is found.relative_high is found.better is None and not found.is_certain


def test_a_draw_in_which_only_the_other_is_perfect_has_no_bound() -> None:
    found = Bootstrap({"a": [1, 1, 1], "b": [1, 0, 0]}, [5] * 3, [None] * 3).compare("a", "b")
    assert found.relative_reduction == -2 and found.relative_low is None
    assert found.relative_high == 0


def test_references_without_words() -> None:
    bootstrap = Bootstrap({"a": [2, 1]}, [0, 0], [None, None])
    interval = bootstrap.interval("a")
    assert interval is not None and interval.high == 4  # errors over one word, as the WER itself


def test_what_is_not_of_the_same_utterances_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of \[2, 3\] utterances; give one of each"):
        Bootstrap({"a": [1, 2, 3]}, [5, 5], [None, None])
    with pytest.raises(ValueError, match="give one of each"):
        Bootstrap({}, [], [])


def test_kaldialign_has_the_same_intervals_over_utterances() -> None:
    kaldialign = pytest.importorskip("kaldialign", reason="kaldialign is a development dependency")
    rng = np.random.default_rng(7)
    said = [rng.integers(0, 50, size=rng.integers(3, 20)).tolist() for _ in range(400)]

    def heard(rate: float) -> list[list[int]]:
        """Words that nobody says in the place of some: so many errors, however they are aligned."""
        return [[99 if rng.random() < rate else word for word in words] for words in said]

    first, second = heard(0.15), heard(0.13)
    errors = {
        name: [sum(word == 99 for word in words) for words in system]
        for name, system in (("first", first), ("second", second))
    }
    bootstrap = Bootstrap(errors, [len(words) for words in said], NOBODY)
    theirs = kaldialign.bootstrap_wer_ci(said, first, second)
    for name, key in (("first", "system1"), ("second", "system2")):
        ours = bootstrap.interval(name)
        assert ours is not None
        assert ours.low == pytest.approx(theirs[key]["ci95min"], abs=0.001)
        assert ours.high == pytest.approx(theirs[key]["ci95max"], abs=0.001)
    better = bootstrap.compare("second", "first").better
    assert 0.5 < theirs["p_s2_improv_over_s1"] < 1
    assert better == pytest.approx(theirs["p_s2_improv_over_s1"], abs=0.015)
