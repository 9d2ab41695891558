"""Where teachers are loaded from, and on which device."""

from pathlib import Path

import fsspec
import pytest
import torch
from pydantic import ValidationError
from s3_server import S3Server
from transformers import HubertConfig, HubertModel

from mvqkd.models.teachers import TeacherLoadError
from mvqkd.workers.teacher import TeacherConfig, choose_device, open_teacher


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random HuBERT."""
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("teacher") / "tiny-hubert"
    HubertModel(config).save_pretrained(folder)
    return folder


def test_local_folder(checkpoint: Path) -> None:
    teacher = open_teacher(
        TeacherConfig(path=str(checkpoint), layer=1, device="cpu", normalize=False), options={}
    )
    assert (teacher.info.dim, teacher.info.layer, teacher.info.num_layers) == (16, 1, 2)


@pytest.mark.integration
def test_folder_in_s3_is_the_same_teacher(checkpoint: Path, s3_environment: S3Server) -> None:
    options = {"endpoint_url": s3_environment.endpoint_url}
    url = f"s3://{s3_environment.bucket}/teachers/tiny-hubert"
    for path in checkpoint.iterdir():
        fsspec.filesystem("s3", **options).put(str(path), f"{url}/{path.name}")
    local = open_teacher(TeacherConfig(path=str(checkpoint), device="cpu", normalize=False), options={})
    remote = open_teacher(TeacherConfig(path=url, device="cpu", normalize=False), options=options)
    assert remote.info == local.info
    waveform_T = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(remote.encode([waveform_T])[0], local.encode([waveform_T])[0])
    with pytest.raises(TeacherLoadError, match=r"s3://.*/nowhere: no such folder.*teacher.path"):
        open_teacher(TeacherConfig(path=f"s3://{s3_environment.bucket}/nowhere"), options=options)


def test_revision_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        "mvqkd.models.teachers.loading.load_teacher",
        lambda path, **settings: asked.append(settings["revision"]),
    )
    open_teacher(TeacherConfig(path="some/teacher", revision="v1.2", device="cpu"), options={})
    open_teacher(TeacherConfig(path="some/teacher", device="cpu"), options={})
    assert asked == ["v1.2", None]


def test_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_settings_are_strict() -> None:
    with pytest.raises(ValidationError):
        TeacherConfig(path="x", layer=0)
    with pytest.raises(ValidationError):
        TeacherConfig(path="x", dtype="float64")
    with pytest.raises(ValidationError):
        TeacherConfig(path="x", unknown=1)
