"""Transforms between a recording and its codes: one waveform each time, on this machine, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import MonoCut
from lhotse.augmentation import AudioTransform
from workers_fakes import make_cuts, write_manifest

from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus import transforms
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig
from mvqkd.workers.corpus.transforms import transforms_problem
from mvqkd.workers.cuts import Refused, UtteranceError

FINE: list[dict[str, Any]] = [
    {"name": "Speed", "kwargs": {"factor": 1.1}},
    {"name": "Volume", "kwargs": {"factor": 0.3}},
    {"name": "Volume", "kwargs": {"factor": 2}},
    {"name": "Resample", "kwargs": {"source_sampling_rate": 16000, "target_sampling_rate": 16000}},
    {"name": "Clipping", "kwargs": {"hard": True, "gain_db": 6.0, "normalize": True}},
    {"name": "Compress", "kwargs": {"codec": "opus", "compression_level": 0.5}},
    {"name": "Compress", "kwargs": {"codec": "vorbis", "compression_level": 0.9}},
    {
        "name": "Narrowband",
        "kwargs": {"codec": "mulaw", "source_sampling_rate": 16000, "restore_orig_sr": True},
    },
]


def with_transforms(tmp_path: Path, *found: dict[str, Any]) -> MonoCut:
    (cut,) = make_cuts(tmp_path, [0.5])
    cut.recording.transforms = [AudioTransform.from_dict(t) for t in found]
    return cut


@pytest.mark.parametrize(
    "transform", FINE, ids=lambda t: "-".join(map(str, [t["name"], *t["kwargs"].values()]))
)
def test_transforms_that_give_one_waveform(tmp_path: Path, transform: dict[str, Any]) -> None:
    cut = with_transforms(tmp_path, transform)
    assert transforms_problem(cut.recording) is None
    if transform["name"] != "Speed":  # which changes the length, so that Lhotse writes it itself
        load = AudioLoader(16_000)
        assert torch.equal(load(cut), load(cut))


def test_reverberation_needs_an_impulse_response(tmp_path: Path) -> None:
    (cut,) = make_cuts(tmp_path, [0.5])
    random = cut.reverb_rir(room_rng_seed=1, source_rng_seed=2)
    problem = transforms_problem(random.recording)
    assert problem is not None and problem.startswith(
        "transform ReverbWithImpulseResponse has no impulse response and draws one at random each time"
    )
    fixed = cut.reverb_rir(cut.recording)
    assert transforms_problem(fixed.recording) is None
    assert torch.equal(AudioLoader(16_000)(fixed), AudioLoader(16_000)(fixed))
    # An impulse response with a random transform of its own is as random.
    nested = cut.reverb_rir(random.recording)
    assert "draws one at random" in str(transforms_problem(nested.recording))


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ({"name": "LoudnessNormalization", "kwargs": {"target": -23.0}}, "pip install pyloudnorm"),
        ({"name": "DereverbWPE", "kwargs": {}}, "pip install nara_wpe"),
        ({"name": "Tempo", "kwargs": {"factor": 1.0}}, "install a torchaudio that has sox effects"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_missing_library_is_found_at_planning_and_costs_that_cut_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transform: dict[str, Any], words: str
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("no such library")

    transforms._trial.cache_clear()
    monkeypatch.setattr(AudioTransform.KNOWN_TRANSFORMS[transform["name"]], "__call__", missing)
    cuts = make_cuts(tmp_path, [0.5, 0.4, 0.3])
    cuts[1].recording.transforms = [transform]
    path = write_manifest(tmp_path / "c.jsonl", cuts)
    config = CorpusConfig(format="cuts", train=str(path))
    first, refused, third = Corpus(config, sample_rate_hz=16_000).cuts("train")
    assert isinstance(first, MonoCut) and isinstance(third, MonoCut) and isinstance(refused, Refused)
    why = "does not run here at 16000 Hz (ImportError: no such library)"
    assert f"transform {transform['name']} {why}" in refused.reason
    assert words in refused.reason
    # Where it is missing on a worker alone, the cut is left out by its name.
    with pytest.raises(UtteranceError, match=r"u001: .*u001.wav: the audio cannot be .*no such library"):
        AudioLoader(16_000)(cuts[1])
    transforms._trial.cache_clear()


def test_each_kind_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = AudioTransform.KNOWN_TRANSFORMS["Compress"]
    calls: list[int] = []
    call = kind.__call__

    def counting(self: Any, samples: np.ndarray, rate: int) -> np.ndarray:
        calls.append(rate)
        return call(self, samples, rate)

    transforms._trial.cache_clear()
    monkeypatch.setattr(kind, "__call__", counting)
    for level in (0.1, 0.5, 0.7):
        cut = with_transforms(
            tmp_path, {"name": "Compress", "kwargs": {"codec": "opus", "compression_level": level}}
        )
        assert transforms_problem(cut.recording) is None
    assert calls == [16_000, 16_000]
    transforms._trial.cache_clear()


def test_what_gives_other_audio_each_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transforms._trial.cache_clear()
    kind = AudioTransform.KNOWN_TRANSFORMS["Compress"]
    monkeypatch.setattr(kind, "__call__", lambda self, samples, rate: samples + np.random.rand())
    cut = with_transforms(
        tmp_path, {"name": "Compress", "kwargs": {"codec": "mp3", "compression_level": 0.5}}
    )
    assert "Compress (mp3) gives other audio each time it is loaded" in str(transforms_problem(cut.recording))
    transforms._trial.cache_clear()


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf"), "1.1", None, True, [1]])
def test_factors_that_cannot_be(tmp_path: Path, factor: Any) -> None:
    for name in ("Speed", "Volume", "Tempo"):
        cut = with_transforms(tmp_path, {"name": name, "kwargs": {"factor": factor}})
        assert f"transform {name} has the factor" in str(transforms_problem(cut.recording))


def test_a_transform_of_somebodys_own_is_refused(tmp_path: Path) -> None:
    class Dither(AudioTransform):
        def to_dict(self) -> dict[str, Any]:
            return {"name": "Dither", "kwargs": {}}

    try:
        cut = with_transforms(tmp_path)
        cut.recording.transforms = [Dither()]
        assert "Dither is not one that is known to give" in str(transforms_problem(cut.recording))
    finally:
        del AudioTransform.KNOWN_TRANSFORMS["Dither"]


def test_every_transform_of_lhotse_is_known() -> None:
    known = {*transforms._KNOWN, "ReverbWithImpulseResponse"}
    assert set(AudioTransform.KNOWN_TRANSFORMS) == known
