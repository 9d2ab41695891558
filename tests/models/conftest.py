"""Fixtures that several files of tests of the models share."""

from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of tiny random teachers, by variant."""
    import transformers  # here, as few tests need it and it is slow to import
    from models_teachers import VARIANTS, make_model, wave_extractor

    folders = {}
    for variant in [*VARIANTS, "whisper"]:
        folders[variant] = tmp_path_factory.mktemp("teachers") / variant
        make_model(variant).save_pretrained(folders[variant])
        extractor = transformers.WhisperFeatureExtractor() if variant == "whisper" else wave_extractor()
        extractor.save_pretrained(folders[variant])
    return folders


@pytest.fixture(params=["library", "products"])
def convolutions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Teachers on the CPU compute their convolutions in each way, of which GPUs take the second."""
    from mvqkd.models.teachers import products

    monkeypatch.setitem(products.CONVOLUTIONS, "cpu", request.param)
    return request.param


@pytest.fixture
def one_thread():
    """More threads only wait for each other on frames as few as those of the tests of benchmarks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def frames(tmp_path):
    """The arguments that give a benchmark correlated frames of 16 channels."""
    random = np.random.default_rng(0)
    mix = random.standard_normal((16, 16))
    for name, count in (("train", 600), ("test", 300)):
        np.save(tmp_path / f"{name}.npy", random.standard_normal((count, 16)) @ mix)
    return ["--train-frames", str(tmp_path / "train.npy"), "--test-frames", str(tmp_path / "test.npy")]
