"""Values of a run file: each is what its key wants and what stands there; keys that come twice are refused."""

import re
from pathlib import Path
from typing import Any

import pytest

from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_file import config_from_text, load_config

BASE = "corpus: {root: data}\nteacher: {path: teacher}\nstorage: {root: runs/x}\n"
SAME_TEXT = (
    "0123",
    "1234567",
    "12e4567",
    "1e5",
    "yes",
    "off",
    "true",
    "1:30",
    "2024-01-01",
    "0x1F",
    "1_000",
    ".inf",
    "=",
)


def of(text: str, *overrides: str) -> Any:
    return config_from_text(BASE + text, "run.yaml", overrides)


@pytest.mark.parametrize("text", SAME_TEXT)
def test_a_key_that_is_text_takes_what_stands_there(text: str) -> None:
    corpus, teacher = f"{{root: {text}, train: {text}}}", f"\n  path: {text}\n  revision: {text}"
    config = config_from_text(
        f"corpus: {corpus}\nteacher: {teacher}\nstorage: {{root: {text}}}\n", "run.yaml"
    )
    assert [config.corpus.root, config.corpus.train, config.teacher.path, config.teacher.revision] == [
        text
    ] * 4
    assert config.storage.root == text
    assert of("", f"teacher.revision={text}").teacher.revision == text


@pytest.mark.parametrize(
    "text",
    [
        "/data/corpus #1",
        "a: b",
        "[a",
        "{a}",
        "*a",
        "!x",
        "a'b",
        " a ",
        "#1",
        "a=b",
        "- a",
        "@",
        "None",
        '"a',
        "Tür",
    ],
)
def test_an_override_of_a_text_is_taken_as_it_is(text: str) -> None:
    assert of("", f"corpus.root={text}").corpus.root == text


@pytest.mark.parametrize(
    ("text", "value"), [("null", None), ("", None), ("'null'", "null"), ('"a #b"', "a #b")]
)
def test_no_value_and_quoted_values_of_a_text(text: str, value: str | None) -> None:
    assert of("", f"teacher.revision={text}").teacher.revision == value


@pytest.mark.parametrize("text", ["null", ""])
def test_a_text_that_is_needed_is_not_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.root: input should be a valid string, not None"):
        of("", f"storage.root={text}")
    with pytest.raises(ConfigError, match=r"table\.path: string should have at least 1 character, not ''"):
        of("table: {path: ''}\n")


@pytest.mark.parametrize("text", ["~", "null", "Null", ""])
def test_null_in_the_file(text: str) -> None:
    assert of(f"table: {{path: {text}}}\n").table.path is None


@pytest.mark.parametrize(
    "text", ["0123", "08", "1:30", "2024-01-01", "yes", "on", "1__0", "_1", "0o17", "0b1", "'8'", "9" * 5000]
)
@pytest.mark.parametrize("key", ["distill.epochs", "distill.grad_clip", "extract.actors"])
def test_a_number_is_not_made_of_what_is_none(text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key}: input should be")) as caught:
        of("", f"{key}={text}")
    assert len(str(caught.value)) < 500
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=re.escape(f"{key}: input should be")):
        of(f"{section}: {{{name}: {text}}}\n")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("epochs", "1_000", 1000),
        ("epochs", "0x1F", 31),
        ("epochs", "+3", 3),
        ("lr", "1e-3", 0.001),
        ("lr", ".5", 0.5),
        ("lr", "5", 5.0),
        ("lr", "1.5E+2", 150.0),
        ("baseline", "no", False),
        ("baseline", "ON", True),
        ("codebooks", "~", None),
    ],
)
def test_numbers_and_switches(key: str, text: str, value: object) -> None:
    for config in (of("", f"distill.{key}={text}"), of(f"distill: {{{key}: {text}}}\n")):
        assert getattr(config.distill, key) == value


@pytest.mark.parametrize(
    ("text", "first", "again"),
    [
        ("extract: {shard_hours: 1.0}\ntable: {}\nextract: {batch_seconds: 60.0}\n", 4, 6),
        ("distill:\n  lr: 0.1\n  epochs: 3\n  lr: 0.2\n", 5, 7),
        ("distill: {lr: 0.1,\n  'lr': 0.2}\n", 4, 5),
        ("students:\n  a: {student: {num_layers: 3,\n    num_layers: 4}}\n", 5, 6),
        ("student: &s {num_layers: 6}\nstudents:\n  a:\n    student:\n      <<: *s\n      <<: *s\n", 8, 9),
    ],
)
def test_what_stands_twice_is_refused_with_both_lines(text: str, first: int, again: int) -> None:
    with pytest.raises(ConfigError) as caught:
        of(text)
    assert f"run.yaml: line {again}: " in str(caught.value)
    assert f"the first time in line {first}" in str(caught.value)


def test_a_merged_key_may_be_said_again() -> None:
    config = of(
        "students:\n  mvqkd: {student: &s {num_layers: 8, num_heads: 2}}\n"
        "  wide: {student: {<<: *s, num_layers: 4, dropout: 0.5}, distill: {lr: 1e-3}}\n"
    )
    student, _ = config.student_settings("wide")
    assert (student.num_layers, student.num_heads, student.dropout) == (4, 2, 0.5)


@pytest.mark.shared
def test_the_section_twice_of_the_shared_cases(shared: Path) -> None:
    with pytest.raises(ConfigError, match="line 5: 'extract' stands here again, the first time in line 3"):
        load_config(shared / "cases" / "section-twice.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [a]\n: b\n", "line 4: a key has to be a name"),
        ("table: !x {}\n", "line 4: the tag !x is not known here"),
        ("table: {path: !!python/name:os.system x}\n", "line 4: the tag"),
        ("table: &t {<<: *t}\n", "line 4: a mapping that merges itself"),
        ("table: {<<: 3}\n", "line 4: << takes mappings only"),
        ("table: {path: *nowhere}\n", "not valid YAML"),
        (f"table: {'[' * 2000}\n", "nested too deep"),
        (
            "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9 if n else 'x'}]\n" for n in range(9)),
            "use fewer aliases",
        ),
        ("\tx: 1\n", "not valid YAML"),
        ("--- \n{}\n", "not valid YAML"),
        ("table: 3\n", "table: has keys and values below it, not 3"),
        ("table: {path: [a]}\n", r"table.path: input should be a valid string, not ['a']"),
        ("student: {num_layers: '6'}\n", "student.num_layers: input should be a valid integer, not '6'"),
        ("student: {num_layers: true}\n", "student.num_layers: input should be a valid integer, not True"),
        ("student: {dropout: .nan}\n", "student.dropout: input should be a finite number, not nan"),
        ("quantizer: {anneal_rounds: 0}\n", "quantizer: anneal_rounds=0 must be at least 1"),
        (
            "distill: {seed: 99999999999999999999}\n",
            "distill.seed: input should be less than or equal to 1099511627776",
        ),
        ('table: {path: "\\ud800"}\n', "table.path: input should be a valid string"),
    ],
)
def test_refusals_name_their_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of(text)
    assert str(caught.value).startswith("run.yaml: ")
    assert message in str(caught.value)


def test_a_section_with_nothing_in_it_has_its_defaults() -> None:
    assert of("student:\n  # num_layers: 3\ndistill:\n") == of("")
    with pytest.raises(ConfigError, match=r"teacher\.path: is missing"):
        config_from_text("corpus: {root: x}\nteacher:\nstorage: {root: y}\n", "run.yaml")


@pytest.mark.parametrize(
    "key", ["corpus.root", "corpus.train", "corpus.test", "teacher.path", "storage.root", "table.path"]
)
def test_the_home_folder_in_every_path(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    section, name = key.split(".")
    for text, value in (("~/x", "/home/me/x"), ("./~x", "./~x"), ("s3://b/~", "s3://b/~"), ("~", "/home/me")):
        assert getattr(getattr(of("", f"{key}={text}"), section), name) == value
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: ~nobody-here is no user's home folder"):
        of("", f"{key}=~nobody-here/x")


def test_the_home_folder_in_the_name_of_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(BASE)
    assert load_config("~/run.yaml") == of("")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("~nobody-here/run.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("run\0.yaml")
