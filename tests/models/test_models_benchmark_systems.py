"""The systems that `python -m benchmarks.quantizer` compares, at toy size, and what they are compared by."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quantizer import report, systems_torch
from benchmarks.quantizer.fitting import FitOptions
from benchmarks.quantizer.frames import dataset_of_files, evenly, gaussian_dataset, shannon_rrl
from benchmarks.quantizer.probes import probe_nats
from benchmarks.quantizer.same_codebooks import same_codebooks
from benchmarks.quantizer.systems import SYSTEMS
from mvqkd.models.quantizer import Quantizer, rrl

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["faiss-opq", "faiss-rq", "faiss-lsq", "multi_quantization"])
def test_other_systems(name, frames):
    system = SYSTEMS[name]
    pytest.importorskip(system.module)
    train_MD, test_MD = dataset_of_files(Path(frames[1]), Path(frames[3]), None).load()
    options = FitOptions(num_bytes=2, budget_s=0.05, seed=1, threads=1, device=torch.device("cpu"))
    fitted = system.fit(train_MD, options)
    codes_MN = fitted.encode(test_MD)
    assert codes_MN.shape == (300, 2) and int(codes_MN.max()) <= 255
    assert 0 < rrl(test_MD, fitted.decode(codes_MN)) < 1 and fitted.fit_s > 0
    if fitted.encode_fast is not None:
        assert 0 < rrl(test_MD, fitted.decode(fitted.encode_fast(test_MD))) < 1
        assert torch.equal(fitted.encode(test_MD), codes_MN), "the exact way is not changed by the fast one"
    assert system.refuses(16, 2) is None


def test_sizes_that_are_refused():
    assert SYSTEMS["multi_quantization"].refuses(512, 12) == "it takes 1, 2, 4, 8, 16, 32 codebooks only"
    assert "cannot be cut into 12" in SYSTEMS["faiss-opq"].refuses(512, 12)
    assert SYSTEMS["ours"].refuses(512, 12) is None


def test_steps_fill_the_budget(monkeypatch):
    def trainer_of(one_steps, two_steps):
        return type("Trainer", (), {"step": lambda self, x: 0.25 if one_steps > 1 else 0.75})()

    monkeypatch.setattr(systems_torch, "seconds", lambda call, device: call() or 0.0)
    assert systems_torch.steps_within(60.0, torch.zeros(10, 4), trainer_of) == (60, 0.0)
    assert systems_torch.steps_within(0.1, torch.zeros(10, 4), trainer_of) == (1, 0.0)


def test_same_codebooks(tmp_path):
    pytest.importorskip("multi_quantization")
    torch.manual_seed(0)
    quantizer = Quantizer(16, 256, 2)
    torch.save(quantizer.state_dict(), tmp_path / "peer.pt")
    x_MD = torch.randn(40, 16)
    figures = same_codebooks(x_MD, tmp_path / "peer.pt", 20)
    drawn_BD = x_MD[::2]
    assert figures["frames"] == 20 and figures["num_codebooks"] == 2 and figures["checkpoint"] == "peer.pt"
    assert figures["ours"]["rrl"] == pytest.approx(
        rrl(drawn_BD, quantizer.decode(quantizer.encode(drawn_BD)))
    )
    assert figures["ours"]["rrl"] <= figures["multi_quantization"]["rrl"] * 1.001
    names = ("ours", "ours in tensor operations", "multi_quantization")
    speeds = [figures[name]["encode_fps"] for name in names]
    assert figures["kernel_ratio"] == pytest.approx(speeds[0] / speeds[1])
    assert figures["speed_ratio"] == pytest.approx(speeds[0] / speeds[2])
    with pytest.raises(ValueError, match=r"peer.pt takes 16 channels, the frames have 8"):
        same_codebooks(x_MD[:, :8], tmp_path / "peer.pt", 20)


@pytest.mark.parametrize("hidden", [False, True])
def test_probes_tell_predictable_codes(hidden):
    torch.manual_seed(0)
    x_MD = torch.randn(2000, 8) * 5 + 3
    signs_MN = (x_MD > 3).view(-1, 2, 4)[:, :1]
    predictable_MN = 16 * (signs_MN * 2 ** torch.arange(4)).sum(dim=2)
    shuffled_MN = predictable_MN[torch.randperm(2000)]
    x_MD = x_MD.repeat(1, 32) + torch.randn(2000, 256)
    predictable, shuffled = (
        probe_nats(x_MD[:1500], c[:1500], x_MD[1500:], c[1500:], hidden=hidden, steps=60, seed=1)
        for c in (predictable_MN, shuffled_MN)
    )
    assert predictable < 2.2 < math.log(16) - 0.05 < shuffled


def test_shannons_bound_and_the_gaussian():
    assert shannon_rrl(8, 64) == 0.25 and shannon_rrl(4, 64) == 0.5 and shannon_rrl(16, 64) == 0.0625
    dataset = gaussian_dataset()
    train_MD, test_MD = dataset.load()
    assert train_MD.shape == (40_000, 64) and test_MD.shape == (8_000, 64)
    assert float(train_MD.var()) == pytest.approx(1, abs=0.01)
    assert torch.equal(dataset.load()[1], test_MD)
    row = {
        "dataset": "gaussian",
        "bytes": 8,
        "system": "ours",
        "rrl": 0.4,
        "rrl_drawn": 0.4,
        "encode_fps": 1.0,
    }
    assert report.with_ratios([row], {"gaussian": 64})[0]["bound"] == 0.25


def test_frames_that_cannot_be_used(tmp_path):
    good, bad = tmp_path / "good.npy", tmp_path / "bad.npy"
    np.save(good, np.zeros((10, 4), dtype=np.float16))
    dataset = dataset_of_files(good, good, 5)
    assert dataset.load()[0].shape == (5, 4) and dataset.load()[1].dtype == torch.float32
    assert evenly(5, 10).tolist() == [0, 2, 4, 6, 8] and evenly(9, 3).tolist() == [0, 1, 2]
    for array, message in (
        (np.zeros(4), r"holds float64 \(4,\); give one array of floats"),
        (np.zeros((4, 4), dtype=int), r"holds int64 \(4, 4\)"),
        (np.full((4, 4), np.nan), "holds NaN or infinity"),
        (np.zeros((4, 5)), "has 4 channels, .* 5: give frames of one teacher"),
        (np.array([None, "x"]), "is no array of numbers"),
    ):
        np.save(bad, array, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            dataset_of_files(good, bad, None)
