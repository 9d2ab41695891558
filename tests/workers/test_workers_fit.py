"""Fitting from audio to a stored quantizer, and going on after an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from workers_fakes import DIM, FakeTeacher, make_cuts, make_embedder

from mvqkd.models.quantizer import FitConfig
from mvqkd.storage.errors import ArtifactError
from mvqkd.storage.location import Location, open_location
from mvqkd.workers.fit import STATE, QuantizerFitter
from mvqkd.workers.quantizer_record import load_quantizer, load_record
from mvqkd.workers.sample import Sample

CONFIG = FitConfig(
    method="paper",
    num_codebooks=2,
    codebook_size=4,
    batch_size=64,
    phase_one_steps=12,
    phase_two_steps=12,
    state_every=4,
    valid_every=6,
)
LSQ = FitConfig(
    num_codebooks=2, codebook_size=4, round_frames=64, anneal_rounds=20, state_every=4, valid_every=6
)
SETTINGS = {"teacher": {"layer": 3}, "sample_hours": 1.5}


def make_fitter(
    location: Location, *, max_frames: int = 10_000, config: FitConfig = CONFIG
) -> QuantizerFitter:
    return QuantizerFitter(
        embedder=make_embedder(),
        location=location,
        config=config,
        max_frames=max_frames,
        device=torch.device("cpu"),
        settings=SETTINGS,
    )


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    cuts = make_cuts(tmp_path / "audio", [0.5, 0.6, 0.7, 0.8, 0.5, 0.4])
    return Sample(train=tuple(cuts[:4]), valid=tuple(cuts[4:]), held_out="recordings")


def test_end_to_end(tmp_path: Path, sample: Sample) -> None:
    location = open_location(str(tmp_path / "quantizer"))
    (tmp_path / "audio/u001.wav").unlink()
    notes: list[dict[str, Any]] = []
    record = make_fitter(location).run(sample, note=notes.append)
    quantizer, stored = load_quantizer(location)
    assert stored == load_record(location) == record and quantizer.get_id() == record.id
    assert (quantizer.dim, quantizer.num_codebooks, quantizer.codebook_size) == (DIM, 2, 4)
    assert record.teacher["fingerprint"] == FakeTeacher().info.fingerprint
    assert stored.settings == SETTINGS
    data = record.training_data
    teacher = FakeTeacher()
    assert data.frames == sum(teacher.num_frames(round(s * 16_000)) for s in (0.5, 0.7, 0.8))
    assert data.valid_frames == sum(teacher.num_frames(round(s * 16_000)) for s in (0.5, 0.4))
    assert [(x["cut_id"], x["stage"]) for x in data.left_out] == [("u001", "load")]
    assert data.held_out == "recordings"
    assert 0 < record.valid_rrl < 1.5 and record.steps == 25
    assert sorted(location.list()) == ["quantizer.json", "quantizer.safetensors"]
    assert [note["stage"] for note in notes[:6]] == ["embed"] * 6
    assert notes[5]["done"] == notes[5]["total"] == 6
    assert notes[-1]["stage"] == "fit" and notes[-1]["done"] == notes[-1]["total"] == 25


class Interrupted(Exception):
    pass


def interrupt(location: Location, sample: Sample, fitter: QuantizerFitter) -> None:
    def stop_in_the_middle(note: dict[str, Any]) -> None:
        if note["stage"] == "fit" and note["done"] >= 18:
            raise Interrupted

    with pytest.raises(Interrupted):
        fitter.run(sample, note=stop_in_the_middle)
    assert STATE in location.list()


@pytest.mark.parametrize("config", [CONFIG, LSQ])
def test_resumed_fit_ends_at_the_same_quantizer(tmp_path: Path, sample: Sample, config: FitConfig) -> None:
    whole, broken = open_location(str(tmp_path / "whole")), open_location(str(tmp_path / "broken"))
    expected = make_fitter(whole, config=config).run(sample)
    interrupt(broken, sample, make_fitter(broken, config=config))
    steps: list[int] = []
    resumed = make_fitter(broken, config=config).run(
        sample, note=lambda n: steps.append(n["done"]) if n["stage"] == "fit" else None
    )
    assert steps[0] > 10
    assert resumed.id == expected.id and resumed.valid_rrl == expected.valid_rrl
    assert whole.read_bytes("quantizer.safetensors") == broken.read_bytes("quantizer.safetensors")


def test_state_of_another_fit_is_not_taken_up(tmp_path: Path, sample: Sample) -> None:
    whole, broken = open_location(str(tmp_path / "whole")), open_location(str(tmp_path / "broken"))
    interrupt(broken, sample, make_fitter(broken))
    other = replace(sample, train=sample.train[1:])
    expected = make_fitter(whole).run(other)
    assert make_fitter(broken).run(other).id == expected.id


def test_fit_goes_on_where_sums_are_rounded_otherwise(
    tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another kind of device, or with another number of threads."""
    location = open_location(str(tmp_path / "quantizer"))
    interrupt(location, sample, make_fitter(location))
    real = FakeTeacher.encode
    monkeypatch.setattr(FakeTeacher, "encode", lambda *given: [x * (1 + 1e-6) for x in real(*given)])
    steps: list[int] = []
    record = make_fitter(location).run(
        sample, note=lambda n: steps.append(n["done"]) if n["stage"] == "fit" else None
    )
    assert steps[0] > 10 and record.steps == 25


def test_state_of_an_older_version_is_not_taken_up(
    tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = open_location(str(tmp_path / "whole")), open_location(str(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        patch.setattr("mvqkd.workers.fit.STATE_VERSION", 1)
        interrupt(broken, sample, make_fitter(broken))
    expected = make_fitter(whole).run(sample)
    steps: list[int] = []
    resumed = make_fitter(broken).run(
        sample, note=lambda n: steps.append(n["done"]) if n["stage"] == "fit" else None
    )
    assert steps[0] <= 10 and resumed.id == expected.id


def test_damaged_state(tmp_path: Path, sample: Sample) -> None:
    location = open_location(str(tmp_path / "quantizer"))
    location.replace(STATE, b"no safetensors")
    with pytest.raises(ValueError, match=rf"{STATE}: damaged .*delete it, the fit then starts anew"):
        make_fitter(location).run(sample)


def test_nothing_can_be_embedded(tmp_path: Path, sample: Sample) -> None:
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"no utterance of the quantizer's sample .*u003: .*no such audio file"
    ):
        make_fitter(open_location(str(tmp_path / "q"))).run(sample)
    with pytest.raises(ValueError, match="the sample is empty"):
        make_fitter(open_location(str(tmp_path / "q"))).run(replace(sample, train=(), valid=()))


def test_frames_are_bounded_and_evenly_thinned(tmp_path: Path, sample: Sample) -> None:
    record = make_fitter(open_location(str(tmp_path / "q")), max_frames=40).run(sample)
    assert 30 <= record.training_data.frames <= 40
    assert 5 <= record.training_data.valid_frames <= 10


def test_no_quantizer(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"quantizer.json: missing"):
        load_quantizer(open_location(str(tmp_path)))
