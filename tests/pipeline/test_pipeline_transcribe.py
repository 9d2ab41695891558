"""`mvqkd transcribe` and `mvqkd onnx` as they are typed."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import Done, copy_of, write_run_file
from typer.testing import CliRunner

from mvqkd.pipeline.cli import app

pytestmark = pytest.mark.integration


def test_files_are_transcribed_and_a_bad_one_is_named(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "students")
    run_file = write_run_file(tree, tmp_path)
    audio = sorted((Path(tree["corpus"]["root"]) / "audio/test").iterdir())[:2]
    files = [str(tmp_path / f"{number}.flac") for number in range(2)]
    for path, file in zip(audio, files, strict=True):
        shutil.copy(path, file)
    whole = CliRunner().invoke(app, ["transcribe", str(run_file), *files])
    assert whole.exit_code == 0, whole.output
    assert [line.split("\t")[0] for line in whole.stdout.splitlines()] == files
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    student = str(tmp_path / "run/students/mvqkd")
    some = CliRunner().invoke(
        app, ["transcribe", student, files[0], str(tmp_path / "bad.wav"), files[1], "--json"]
    )
    assert some.exit_code == 3
    assert "bad.wav" in some.stderr
    lines = [json.loads(line) for line in some.stdout.splitlines()[:3]]
    assert [line["file"] for line in lines] == [files[0], str(tmp_path / "bad.wav"), files[1]]
    assert ["text" in line for line in lines] == [True, False, True]


def test_what_cannot_be_exported_says_why(done: Done, tmp_path: Path) -> None:
    run_file = write_run_file(copy_of(done, tmp_path, "students"), tmp_path)
    result = CliRunner().invoke(app, ["onnx", str(run_file), str(tmp_path / "out")])
    assert result.exit_code == 2 and "fbank" in result.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    none = CliRunner().invoke(app, ["transcribe", str(tmp_path / "nothing"), "x.wav"])
    assert none.exit_code == 2 and "nothing" in none.stderr
