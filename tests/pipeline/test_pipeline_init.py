"""`mvqkd init`: the run file that it writes is valid, says what was found, and plans."""

import json
from pathlib import Path
from typing import Any

import pytest
from lhotse import CutSet, MonoCut, Recording
from lhotse.audio import AudioSource
from typer.testing import CliRunner

from mvqkd.pipeline.cli import app
from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.init import find_corpus, find_teacher, write_run_file
from mvqkd.pipeline.run_file import config_from_text, load_config

runner = CliRunner()


def invoke(*arguments: str | Path) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments])


def teacher_folder(folder: Path, config: dict[str, Any], *, preprocessor: bool = True) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor:
        (folder / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 8000}')
    return folder


def cut(number: int) -> MonoCut:
    source = AudioSource("file", [0], f"audio/{number}.flac")
    recording = Recording(
        id=f"r{number}", sources=[source], sampling_rate=16_000, num_samples=32_000, duration=2.0
    )
    return MonoCut(id=f"c{number}", start=0, duration=2.0, channel=0, recording=recording)


def test_the_file_for_a_folder_plans_as_it_is(
    corpus_root: Path, teacher_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("init", corpus_root, teacher_path, "-o", "mine.yaml", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["run_file"], said["next"]) == ("mine.yaml", "mvqkd plan mine.yaml")
    config = load_config("mine.yaml")
    assert (config.corpus.format, config.corpus.root) == ("folder", str(corpus_root))
    assert (config.corpus.train, config.corpus.test) == ("train", "test")
    assert (config.teacher.path, config.teacher.layer) == (str(teacher_path), 1)
    planned = invoke("plan", "mine.yaml", "--json")
    assert planned.exit_code == 0, planned.output
    summary = json.loads(planned.stdout.splitlines()[-1])
    assert (summary["train_cuts"], summary["test_cuts"]) == (12, 3)


def test_what_is_commented_out_are_the_defaults(
    corpus_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    write_run_file(str(corpus_root), str(teacher_path), tmp_path / "run.yaml")
    text = (tmp_path / "run.yaml").read_text()
    lines = [line.replace("  # ", "  ", 1) if line.startswith("  # ") else line for line in text.splitlines()]
    uncommented = "\n".join(lines)
    assert uncommented.count("# ") < text.count("# ") - 15
    assert config_from_text(uncommented, "x") == config_from_text(text, "x")
    students = "\n".join(
        line.removeprefix("# ")
        for line in text.splitlines()
        if line[:10] in ("# students", "#   baseli", "#   mvqkd:")
    )
    config = config_from_text(f"{text}\n{students}\n", "x")
    plain = config_from_text(text, "x")
    assert config.student_names() == plain.student_names()
    for name in plain.student_names():
        assert config.student_settings(name) == plain.student_settings(name)


def test_a_file_that_is_there_is_kept(corpus_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.yaml"
    out.write_text("mine")
    result = invoke("init", corpus_root, teacher_path, "-o", out)
    assert (result.exit_code, out.read_text()) == (2, "mine")
    assert f"{out}: is there already" in result.stderr
    assert invoke("init", corpus_root, teacher_path, "-o", out, "--force").exit_code == 0
    assert load_config(out).corpus.root == str(corpus_root)
    missing = invoke("init", corpus_root, teacher_path, "-o", tmp_path / "none" / "run.yaml")
    assert (missing.exit_code, "Traceback" in missing.output) == (2, False)


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts train #1.jsonl.gz"])
def test_a_cut_manifest(tmp_path: Path, teacher_path: Path, name: str) -> None:
    CutSet.from_cuts(cut(number) for number in range(4)).to_file(tmp_path / name)
    out = tmp_path / "run.yaml"
    assert invoke("init", tmp_path / name, teacher_path, "-o", out).exit_code == 0
    corpus = load_config(out).corpus
    assert (corpus.format, corpus.root, corpus.train, corpus.test) == ("cuts", str(tmp_path), name, None)
    result = invoke("plan", out, "--set", f"storage.root={tmp_path}/run", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["train_cuts"] == 4


@pytest.mark.parametrize("where", ["beside", "above", "here", "nowhere"])
def test_the_root_of_relative_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    folder, here = tmp_path / "a" / "manifests", tmp_path / "here"
    places = {"beside": folder, "above": tmp_path / "a", "here": here, "nowhere": tmp_path / "other"}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    (places[where] / "audio").mkdir()
    (places[where] / "audio" / "0.flac").write_bytes(b"")
    CutSet.from_cuts([cut(0)]).to_file(folder / "cuts.jsonl.gz")
    monkeypatch.chdir(here)
    found = find_corpus(str(folder / "cuts.jsonl.gz"))
    if where in ("above", "here"):
        assert (found.root, found.train) == (str(places[where]), str(folder / "cuts.jsonl.gz"))
    else:
        assert (found.root, found.train) == (str(folder), "cuts.jsonl.gz")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"recording": {"sources": []}}'])
@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_a_manifest_that_cannot_be_read_is_left_to_plan(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert find_corpus(str(tmp_path / name)).train == name


def test_shar_folders(tmp_path: Path) -> None:
    for part in ("dev", "train"):
        (tmp_path / "shar" / part).mkdir(parents=True)
        (tmp_path / "shar" / part / "cuts.000000.jsonl.gz").write_bytes(b"")
    one, both = find_corpus(str(tmp_path / "shar" / "dev")), find_corpus(str(tmp_path / "shar"))
    assert (one.format, one.root, one.train, one.test) == ("shar", str(tmp_path / "shar"), "dev", None)
    assert (both.format, both.root, both.train, both.test) == ("shar", str(tmp_path / "shar"), "train", "dev")


@pytest.mark.parametrize(
    ("splits", "train", "test"),
    [
        (["train", "test"], "train", "test"),
        (["a", "a", "b"], "a", None),
        (["big", "big", "dev"], "big", "dev"),
        (["test"], "test", None),
        (["yes: #1"], "yes: #1", None),
    ],
)
def test_parts_of_a_folder(tmp_path: Path, splits: list[str], train: str, test: str | None) -> None:
    lines = ["id\tsplit\tspeaker\ttext", *(f"{n}\t{split}\ts\tA" for n, split in enumerate(splits))]
    (tmp_path / "transcripts.tsv").write_text("\n".join(lines))
    write_run_file(str(tmp_path), "some/teacher", tmp_path / "run.yaml")
    corpus = load_config(tmp_path / "run.yaml").corpus
    assert (corpus.train, corpus.test) == (train, test)


def test_folders_that_are_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no corpus here: neither transcripts\.tsv"):
        find_corpus(str(tmp_path))
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"name one of its manifests, such as .*/a\.jsonl"):
        find_corpus(str(tmp_path))
    with pytest.raises(ConfigError, match="no such manifest"):
        find_corpus(str(tmp_path / "b.jsonl"))
    (tmp_path / "transcripts.tsv").write_text("id\tsplit\tspeaker\ttext\n")
    with pytest.raises(ConfigError, match="holds no utterance"):
        find_corpus(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "layer", "note"),
    [
        ({"model_type": "hubert", "num_hidden_layers": 48}, 36, "hubert, 48 layers, 8000 Hz"),
        ({"model_type": "wavlm", "num_hidden_layers": 1}, 1, "wavlm, 1 layers, 8000 Hz"),
        (
            {"model_type": "whisper", "encoder_layers": 6, "num_hidden_layers": 12},
            3,
            "whisper, 6 layers, 8000 Hz",
        ),
    ],
)
def test_teachers(tmp_path: Path, config: dict[str, Any], layer: int, note: str) -> None:
    found = find_teacher(str(teacher_folder(tmp_path / "t", config)))
    assert (found.path, found.layer, found.note) == (str(tmp_path / "t"), layer, note)


def test_a_teacher_whose_normalization_is_unknown(tmp_path: Path) -> None:
    config = {"model_type": "hubert", "num_hidden_layers": 4}
    found = find_teacher(str(teacher_folder(tmp_path / "t", config, preprocessor=False)))
    assert "set true or false" in found.normalize_note


def test_a_teacher_on_the_hub() -> None:
    found = find_teacher("facebook/hubert-xlarge-ls960-ft")
    assert (found.path, found.layer) == ("facebook/hubert-xlarge-ls960-ft", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert", "num_hidden_layers": 12}', "model_type 'bert' with 12 layers is no teacher"),
        ('{"model_type": "hubert"}', "with None layers"),
        ("[", "not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_folders_that_are_no_teacher(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        find_teacher(str(tmp_path))


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        find_teacher(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        find_teacher(str(tmp_path))
