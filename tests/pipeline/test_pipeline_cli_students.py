"""`mvqkd transcribe`, `mvqkd onnx` and the section `decode`, on students of a finished run."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
from tiny import Done, copy_of, make_run, write_run_file
from typer.testing import CliRunner, Result

from mvqkd.pipeline.cli import app
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage

pytestmark = pytest.mark.integration


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def shipped(done: Done, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run with a student of fbank, and its run file."""
    folder = tmp_path_factory.mktemp("shipped")
    tree = copy_of(done, folder, "plan", "table", "quantizer")
    tree = {**tree, "students": {"ships": {"student": {"features": "fbank"}}}}
    run = make_run(tree, folder)
    distill_stage(run)
    return run, write_run_file(tree, folder)


def test_a_student_of_fbank_is_trained_and_decoded(shipped: tuple[Run, Path]) -> None:
    run, _ = shipped
    record = json.loads(run.student("ships").read_bytes("student.json"))
    assert record["student"]["features"] == "fbank" and not record["left_out"]
    assert decode_stage(run)["utterances"] == 3


def test_another_search_trains_nothing_again(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "table", "quantizer", "students")
    before = (tmp_path / "run/students/mvqkd/student.json").read_bytes()
    for search in ("greedy", "beam", "modified_beam"):
        run = make_run({**tree, "decode": {"search": search, "beam": 2}}, tmp_path)
        distill_stage(run, "mvqkd")
        summary = decode_stage(run, "mvqkd")
        assert summary["search"] == search and summary.get("beam") == (None if search == "greedy" else 2)
        assert run.reports.read("decode", "mvqkd")["search"] == search and summary["utterances"] == 3
    assert (tmp_path / "run/students/mvqkd/student.json").read_bytes() == before


def test_students_of_before_there_were_features_are_the_same(done: Done) -> None:
    """Neither their records nor the names of their trainings say anything of it."""
    record = json.loads((done[1] / "students/mvqkd/student.json").read_text())
    assert "features" not in record["student"] and "decode" not in record["distill"]


def test_texts_of_files(shipped: tuple[Run, Path], corpus_root: Path, tmp_path: Path) -> None:
    run, run_file = shipped
    files = sorted((corpus_root / "audio/test").iterdir())
    long = tmp_path / "long.wav"
    audio, rate_hz = soundfile.read(files[0])
    soundfile.write(long, np.tile(audio, 20)[::2], rate_hz // 2)
    (tmp_path / "bad.wav").write_text("no audio")
    names = [str(name) for name in (files[0], tmp_path / "bad.wav", long, files[1])]
    result = call("transcribe", run.student("ships").url, *names, "--window", 5, "--device", "cpu")
    assert result.exit_code == 3
    assert f"{names[1]}: is no audio of a format" in result.stderr and "1 of 4 files" in result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [name for name, _ in lines] == [names[0], names[2], names[3]]

    result = call("transcribe", run_file, *names[2:], "--json", "--beam", 2)
    assert result.exit_code == 0
    first, second, summary = map(json.loads, result.stdout.splitlines())
    assert first["file"] == names[2] and first["duration_s"] == pytest.approx(20 * len(audio) / rate_hz)
    assert isinstance(second["text"], str)
    assert (summary["files"], summary["failed"]) == (2, 0)
    assert summary["audio_s"] == pytest.approx(first["duration_s"] + second["duration_s"], abs=0.01)

    result = call("transcribe", run_file, names[1], "--json")
    assert result.exit_code == 3 and json.loads(result.stdout.splitlines()[0])["error"]


def test_texts_are_those_of_the_decode_stage(shipped: tuple[Run, Path], corpus_root: Path) -> None:
    run, run_file = shipped
    decode_stage(run)
    lines = run.student("ships").read_bytes("errors.jsonl").decode().splitlines()
    expected = {line["cut_id"]: line["hypothesis"] for line in map(json.loads, lines)}
    files = sorted((corpus_root / "audio/test").iterdir())
    result = call("transcribe", run_file, *files)
    assert dict(line.split("\t") for line in result.stdout.splitlines()) == {
        str(file): expected[file.stem] for file in files
    }


def test_a_student_that_there_is_not(shipped: tuple[Run, Path], done: Done, tmp_path: Path) -> None:
    run, run_file = shipped
    url = run.student("ships").url
    for arguments, words in (
        (
            ("transcribe", tmp_path / "nothing", "a.wav"),
            "name the folder of a student that `mvqkd distill` trained",
        ),
        (("transcribe", run_file, "a.wav", "--student", "other"), "no student 'other'; there are ships"),
        (("transcribe", url, "a.wav", "--student", "ships"), "--student ships is of a run file"),
        (("transcribe", url, "a.wav", "--window", "1"), "take 5 s or more"),
        (
            ("transcribe", url, "a.wav", "--search", "greedy", "--beam", "4"),
            "greedy search keeps one hypothesis",
        ),
        (("transcribe", url, "a.wav", "--set", "distill.lr=1"), "only storage.endpoint_url"),
        (("onnx", done[1] / "students/mvqkd", tmp_path / "out"), "takes features log_mel at 16000 Hz"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and words in result.stderr, (arguments, result.output)
    codes_alone = tmp_path / "codes-alone"
    shutil.copytree(url, codes_alone)
    record = json.loads((codes_alone / "student.json").read_text())
    (codes_alone / "student.json").write_text(json.dumps({**record, "untrained": ["output.weight"]}))
    result = call("transcribe", codes_alone, "a.wav")
    assert result.exit_code == 2 and "was trained on codes alone and recognizes nothing" in result.stderr


def test_export(shipped: tuple[Run, Path], tmp_path: Path) -> None:
    _, run_file = shipped
    out = tmp_path / "new/onnx"
    result = call("onnx", run_file, out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert sorted(path.name for path in out.iterdir()) == [
        "decoder.onnx", "encoder.onnx", "joiner.onnx", "tokens.txt",
    ]  # fmt: skip
    assert report["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert report["units"] == len((out / "tokens.txt").read_text().splitlines())
    session = onnxruntime.InferenceSession(report["encoder"], providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["x", "x_lens"]
