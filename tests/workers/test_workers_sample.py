"""The quantizer's sample: from all over the corpus, held-out speakers, the same every time."""

from pathlib import Path

import pytest
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from workers_fakes import make_plan

from mvqkd.workers.sample import Sample, draw_sample


def cuts_without_audio(count: int, *, speakers: int) -> list[MonoCut]:
    cuts = []
    for number in range(count):
        name = f"u{number:05d}"
        recording = Recording(
            id=name, sources=[AudioSource("file", [0], f"/x/{name}.wav")], sampling_rate=16_000,
            num_samples=160_000, duration=10.0,
        )  # fmt: skip
        # Sorted by speaker, as corpora are.
        speaker = f"s{number * speakers // count}" if speakers else None
        supervision = SupervisionSegment(name, name, 0.0, 10.0, speaker=speaker, text="a cat")
        cuts.append(
            MonoCut(
                name, start=0.0, duration=10.0, channel=0, supervisions=[supervision], recording=recording
            )
        )
    return cuts


def ids(cuts: tuple[MonoCut, ...]) -> list[str]:
    return [cut.id for cut in cuts]


def draw(folder: Path, cuts: list[MonoCut], *, hours: float, seed: int = 1, per_shard: int = 10) -> Sample:
    plan, shards = make_plan(folder, cuts, per_shard=per_shard)
    return draw_sample(plan, shards, hours=hours, valid_fraction=0.2, seed=seed)


def speakers_of(cuts: tuple[MonoCut, ...]) -> set[str | None]:
    return {cut.supervisions[0].speaker for cut in cuts}


def test_spread_over_the_corpus(tmp_path: Path) -> None:
    cuts = cuts_without_audio(600, speakers=30)
    sample = draw(tmp_path, cuts, hours=100 * 10 / 3600)
    numbers = sorted(int(cut.id[1:]) for cut in (*sample.train, *sample.valid))
    assert 70 <= len(numbers) <= 130
    per_quarter = [sum(start <= number < start + 150 for number in numbers) for start in range(0, 600, 150)]
    assert min(per_quarter) >= 12
    assert len(speakers_of(sample.train) | speakers_of(sample.valid)) >= 25
    assert not speakers_of(sample.train) & speakers_of(sample.valid)
    assert 0.2 <= len(sample.valid) / len(numbers) <= 0.3
    assert sample.held_out == "speakers"


def test_many_shards_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvqkd.workers.sample.MAX_SHARDS", 7)
    cuts = cuts_without_audio(200, speakers=20)
    sample = draw(tmp_path, cuts, hours=1.0)
    numbers = sorted(int(cut.id[1:]) // 10 for cut in (*sample.train, *sample.valid))
    assert sorted(set(numbers)) == [0, 2, 5, 8, 11, 14, 17]


def test_the_same_every_time_and_in_any_order(tmp_path: Path) -> None:
    cuts = cuts_without_audio(200, speakers=10)
    first = draw(tmp_path / "a", cuts, hours=0.1)
    assert first == draw(tmp_path / "a", cuts, hours=0.1)
    turned = draw(tmp_path / "b", cuts[::-1], hours=0.1)
    assert ids(turned.train) == ids(first.train) and ids(turned.valid) == ids(first.valid)
    other = draw(tmp_path / "a", cuts, hours=0.1, seed=2)
    assert ids(other.train) != ids(first.train)


def test_single_speaker_is_split_by_utterance(tmp_path: Path) -> None:
    sample = draw(tmp_path, cuts_without_audio(50, speakers=1), hours=1.0)
    assert len(sample.valid) == 10 and len(sample.train) == 40
    assert sample.held_out == "utterances"


def test_unknown_speakers_are_split_by_recording(tmp_path: Path) -> None:
    sample = draw(tmp_path, cuts_without_audio(50, speakers=0), hours=1.0)
    assert len(sample.valid) == 10 and not set(ids(sample.train)) & set(ids(sample.valid))
    assert sample.held_out == "recordings"


def test_one_unknown_speaker_makes_it_a_split_by_recording(tmp_path: Path) -> None:
    cuts = cuts_without_audio(50, speakers=5)
    cuts[7].supervisions[0].speaker = None
    sample = draw(tmp_path, cuts, hours=1.0)
    assert sample.held_out == "recordings" and len(sample.train) + len(sample.valid) == 50


def test_two_utterances_do_and_one_does_not(tmp_path: Path) -> None:
    sample = draw(tmp_path / "two", cuts_without_audio(2, speakers=1), hours=1.0)
    assert len(sample.train) == len(sample.valid) == 1
    with pytest.raises(ValueError, match=r"quantizer.sample_hours 1 gives 1 utterances of .*one; raise it"):
        draw(tmp_path / "one", cuts_without_audio(1, speakers=1), hours=1.0)
