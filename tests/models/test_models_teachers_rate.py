"""What a teacher takes, read from its JSON files alone; and what it says of its frames at another rate."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from mvqkd.models.teachers import (
    TeacherLoadError,
    load_teacher,
    read_sample_rate_hz,
    sample_rate_hz_from,
)
from mvqkd.models.teachers.preprocessor import dim_from, json_reader


def checkpoint_at(folder: Path, original: Path, **preprocessor: object) -> Path:
    """A copy with other settings of its feature extractor; None takes the file away."""
    shutil.copytree(original, folder)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | preprocessor
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    return folder


def test_rate_of_a_folder(folders, tmp_path):
    assert read_sample_rate_hz(str(folders["hubert-base"])) == 16_000
    assert read_sample_rate_hz(str(folders["whisper"])) == 16_000
    telephone = checkpoint_at(tmp_path / "telephone", folders["hubert-base"], sampling_rate=8_000)
    assert read_sample_rate_hz(str(telephone)) == 8_000
    silent = checkpoint_at(tmp_path / "silent", folders["hubert-base"], sampling_rate=None)
    assert read_sample_rate_hz(str(silent)) == 16_000
    (silent / "preprocessor_config.json").unlink()
    assert read_sample_rate_hz(str(silent)) == 16_000
    (silent / "processor_config.json").write_text('{"feature_extractor": {"sampling_rate": 8000}}')
    assert read_sample_rate_hz(str(silent)) == 8_000


def test_a_teacher_of_8_khz_says_when_its_frames_are(folders, tmp_path):
    folder = checkpoint_at(tmp_path / "telephone", folders["hubert-base"], sampling_rate=8_000)
    teacher = load_teacher(str(folder), layer=1)
    info = teacher.info
    assert (info.sample_rate_hz, info.frame_rate_hz, info.frame_offset_s) == (8_000, 25.0, 0.025)
    # 2.48 s: as many frames of 40 ms as begin 50 ms before the end.
    assert len(teacher.encode([torch.randn(19_840)])[0]) == teacher.num_frames(19_840) == 61
    assert info.min_samples / info.sample_rate_hz == 0.05


@pytest.mark.parametrize("wrong", ["16000", True, 0, -8_000, 8_000.5, [16_000], float("nan")])
def test_rates_that_are_none(folders, tmp_path, wrong):
    for variant in ("hubert-base", "whisper"):
        folder = checkpoint_at(tmp_path / variant, folders[variant], sampling_rate=wrong)
        for read in (read_sample_rate_hz, load_teacher):
            with pytest.raises(TeacherLoadError, match="is no number of samples a second"):
                read(str(folder))


def test_whisper_at_another_rate_is_refused(folders, tmp_path):
    folder = checkpoint_at(tmp_path / "whisper", folders["whisper"], sampling_rate=8_000)
    for read in (read_sample_rate_hz, load_teacher):
        with pytest.raises(TeacherLoadError, match=r"sampling_rate 8000 .* Whisper encoders take 16000"):
            read(str(folder))


def test_files_that_cannot_be_read(folders, tmp_path):
    folder = checkpoint_at(tmp_path / "copy", folders["hubert-base"])
    for content, message in ((b"[1]", "holds no JSON object"), (b"\xff{", "not valid JSON"), (b"{", "JSON")):
        (folder / "preprocessor_config.json").write_bytes(content)
        for read in (read_sample_rate_hz, load_teacher):
            with pytest.raises(TeacherLoadError, match=rf"preprocessor_config.json.*{message}"):
                read(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(TeacherLoadError, match=r"no config\.json"):
        read_sample_rate_hz(str(folder))
    with pytest.raises(TeacherLoadError, match="no teacher folder at"):
        read_sample_rate_hz(str(tmp_path / "nothing"))
    with pytest.raises(TeacherLoadError, match="is a URL"):
        read_sample_rate_hz("s3://bucket/teacher")


def test_wherever_the_files_lie():
    files = {"config.json": {"model_type": "hubert"}, "preprocessor_config.json": {"sampling_rate": 8_000}}
    assert sample_rate_hz_from(files.get, name="s3://bucket/teacher") == 8_000
    with pytest.raises(TeacherLoadError, match=r"s3://bucket/teacher has no config\.json"):
        sample_rate_hz_from({}.get, name="s3://bucket/teacher")


def test_a_name_on_the_hub(folders, tmp_path, monkeypatch):
    asked = []
    folder = checkpoint_at(tmp_path / "telephone", folders["hubert-base"], sampling_rate=8_000)

    def download(name, file_name, *, revision):
        asked.append((name, file_name, revision))
        if not (folder / file_name).exists():
            raise LocalEntryNotFoundError("it is not kept, and there is no connection\nand more")
        return str(folder / file_name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_sample_rate_hz("some/teacher", "v1") == 8_000
    assert asked == [("some/teacher", name, "v1") for name in ("config.json", "preprocessor_config.json")]
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        TeacherLoadError, match=r"there is no connection\)\. Check .*hf download some/teacher"
    ):
        read_sample_rate_hz("some/teacher")
    # What is kept may say that the checkpoint has no such file.
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *given, **more: huggingface_hub._CACHED_NO_EXIST
    )
    assert read_sample_rate_hz("some/teacher") == 16_000


def test_transformers_is_not_imported(folders):
    code = (
        "import sys; from mvqkd.models.teachers import read_sample_rate_hz; "
        f"print(read_sample_rate_hz({str(folders['hubert-base'])!r}), 'transformers' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "16000 False\n", ended.stderr


def test_numbers_of_an_embedding_without_loading(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("hubert-base", "whisper"):
        folder = str(folders[name])
        assert dim_from(json_reader(folder), name=folder) == load_teacher(folder).info.dim
    (tmp_path / "config.json").write_text('{"model_type": "hubert", "hidden_size": "512"}')
    for path in (tmp_path, tmp_path / "empty"):
        path.mkdir(exist_ok=True)
        with pytest.raises(TeacherLoadError, match="says no hidden_size or d_model"):
            dim_from(json_reader(str(path)), name=str(path))
