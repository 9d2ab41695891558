"""The run file: what is refused, and with which words."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mvqkd.models.students.kinds import KINDS
from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_config import RunConfig, StudentOverrides
from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_sections import TableOverrides
from mvqkd.workers.section import speed_only_keys

REPOSITORY = Path(__file__).resolve().parents[2]

MINIMAL = "corpus: {root: data}\nteacher: {path: teacher}\nstorage: {root: runs/x}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_minimal_file_has_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.quantizer.num_codebooks == 8
    assert config.distill.loss_scale == 0.1


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_run_files_are_valid(path: Path) -> None:
    load_config(path)


def test_paper_settings_are_in_the_librispeech_files() -> None:
    for name in ("100h", "960h"):
        config = load_config(REPOSITORY / "configs" / f"librispeech-{name}-hubert-xlarge.yaml")
        assert (config.teacher.layer, config.quantizer.num_codebooks) == (36, 8)
        assert (config.distill.student_layer, config.student.num_layers) == (6, 12)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("corpus.formt=cuts", "corpus.formt: unknown key; did you mean format?"),
        ("student.encoder_dims=8", "student.encoder_dims: "),
        ("student.num_layers=2.5", "student.num_layers: "),
        ("student.num_heads=7", "student: encoder_dim 144 is not a multiple of num_heads 7"),
        ("teacher.layer=six", "teacher.layer: input should be a valid integer, not 'six'"),
        ("teacher.layer=0", "teacher.layer: "),
        ("teacher.dtype=int8", "teacher.dtype: "),
        ("extract.actors=many", "extract.actors: "),
        ("quantizer.num_codebooks=65", "quantizer.num_codebooks: "),
        ("quantizer.num_codebooks='8'", "quantizer.num_codebooks: input should be a valid integer, not '8'"),
        ("distill.student_layer=12", "distill.student_layer 12 is beyond the last layer of the student"),
        ("distill.batch_seconds=5", "distill.batch_seconds 5.0 is less than one utterance may last"),
        ("distill.lr=.nan", "distill.lr: "),
        ("corpus.min_duration_s=99", "corpus: min_duration_s must be below max_duration_s"),
        ("corpus.root=null", "corpus: format 'folder' needs corpus.root"),
        ("bogus.key=1", "bogus: unknown key"),
        ("student.joiner_dim=0", "student: joiner_dim must be at least 1, not 0"),
        ("extract.max_unreadable=1.5", "extract.max_unreadable: "),
    ],
)
def test_wrong_values_are_refused_with_the_path_of_their_key(
    tmp_path: Path, override: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), [override])
    assert expected in str(caught.value)
    assert str(tmp_path / "run.yaml") in str(caught.value)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "corpus: {root: a, x: 1}\nteacher: {}\nstorage: {root: r}\n"))
    assert "corpus.x: unknown key" in str(caught.value)
    assert "teacher.path: is missing" in str(caught.value)


def test_overrides_are_yaml(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, MINIMAL),
        ["distill.lr=5e-4", "corpus.test=null", "distill.baseline=false", "table.path=x"],
    )
    assert config.distill.lr == 5e-4
    assert config.corpus.test is None
    assert not config.distill.baseline
    assert config.table.path == "x"


@pytest.mark.parametrize(
    "override", ["distill.lr", "=3", ".lr=3", "corpus.root.x=1", "distill.lr=[", "a..b=1"]
)
def test_malformed_overrides_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, MINIMAL), [override])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", ""])
def test_files_that_are_no_run_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(write(tmp_path, text))


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("corpus: {root: Tür}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.yaml: not valid YAML in UTF-8"):
        load_config(tmp_path / "run.yaml")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize("name", ["/dev/zero", "audio.wav"])
def test_a_file_that_is_far_too_long(tmp_path: Path, name: str) -> None:
    (tmp_path / "audio.wav").write_bytes(b"RIFF" + bytes(2 << 20))
    with pytest.raises(ConfigError, match=f"{name}: longer than 1 MiB, so it is no run file"):
        load_config(tmp_path / name)


def test_float16_needs_cuda(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.dtype float16 needs CUDA"):
        load_config(write(tmp_path, MINIMAL), ["teacher.dtype=float16", "teacher.device=cpu"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run file"):
        load_config(tmp_path / "none.yaml")


def test_storage_options_hold_no_secrets(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"storage\.key: unknown key"):
        load_config(write(tmp_path, MINIMAL), ["storage.key=abc"])


def test_the_page_of_keys_is_complete_and_current() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE))
    assert list(sections) == list(RunConfig.model_fields)
    for name, text in sections.items():
        named = {"students": StudentOverrides, "tables": TableOverrides}
        section = named.get(name, RunConfig.model_fields[name].annotation)
        rows = re.findall(r"^\| `(\w+)`(°?) \| (.*?) \|", text, flags=re.MULTILINE)
        documented = {key: default for key, _, default in rows}
        if name == "student":
            # The table has the keys of all kinds; `kind` is that of the first.
            of_all = [field for kind in reversed(KINDS.values()) for field in fields(kind)]
            expected = {field.name: field.default for field in of_all} | {"options": {}}
            assert documented["import_path"] == "(needed)" and expected.pop("import_path") is MISSING
        else:
            expected = {key: f.default for key, f in section.model_fields.items() if not f.is_required()}
            assert {key for key, text in documented.items() if text == "(needed)"} == {
                key for key, f in section.model_fields.items() if f.is_required()
            }
            assert {key for key, mark, _ in rows if mark} == speed_only_keys(section), name
        values = {key: yaml.safe_load(text) for key, text in documented.items() if text != "(needed)"}
        assert values == {k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()}, name
