"""The command line: help, JSON, errors and exit codes. What needs no Ray runs in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_run_file
from typer.testing import CliRunner

from mvqkd.pipeline import run_all as whole
from mvqkd.pipeline import stages
from mvqkd.pipeline.cli import app
from mvqkd.pipeline.cluster.pool import PoolError

runner = CliRunner()


def invoke(*arguments: str | Path) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_command() -> None:
    shown = invoke("--help").output
    for command in ("plan", "fit", "extract", "distill", "decode", "run", "inspect"):
        assert command in shown
    assert "--set" in invoke("extract", "--help").output


def test_plan_prints_json_as_its_last_line(tree: dict[str, Any], tmp_path: Path) -> None:
    result = invoke("plan", write_run_file(tree, tmp_path), "--json", "--set", "extract.shard_hours=0.002")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["train_cuts"], summary["test_cuts"], summary["train_refused"]) == (12, 3, 0)
    assert summary["index_bytes"] == round(summary["train_hours"] * 3600 * 50 * 2)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["plan"] == summary


def test_plan_for_people(tree: dict[str, Any], tmp_path: Path) -> None:
    result = invoke("plan", write_run_file(tree, tmp_path))
    assert "train_cuts: 12" in result.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus.rot=x", "corpus.rot: unknown key; did you mean root?"),
        ("corpus.root=/nowhere", "/nowhere/transcripts.tsv"),
        ("corpus.train=dev", "no split 'dev'"),
        ("storage.root=gs://x", "only local folders, file:// and s3:// are known"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    tree: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    result = invoke("plan", write_run_file(tree, tmp_path), "--set", override)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_inspect_of_a_place_without_a_table(tmp_path: Path) -> None:
    result = invoke("inspect", tmp_path)
    assert result.exit_code == 2
    assert "no index table here" in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus.root=x", "corpus: unknown key; known keys: storage"),
        ("storage.endpoint=x", "storage.endpoint: unknown key; did you mean endpoint_url?"),
        ("storage.key=secret", "storage.key: unknown key"),
    ],
)
def test_inspect_takes_the_settings_of_an_object_store_only(
    tmp_path: Path, override: str, message: str
) -> None:
    result = invoke("inspect", tmp_path, "--set", override)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "error", [stages.StageError("run fit"), PoolError("no workers"), ConnectionError("no cluster")]
)
def test_expected_errors_are_messages(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(stages, "fit_stage", fail)
    result = invoke("fit", write_run_file(tree, tmp_path))
    assert (result.exit_code, result.stderr.strip()) == (2, f"mvqkd: {error}")


def test_programming_errors_are_not_hidden(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> dict[str, Any]:
        raise KeyError("bug")

    monkeypatch.setattr(stages, "fit_stage", fail)
    assert isinstance(invoke("fit", write_run_file(tree, tmp_path)).exception, KeyError)


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (2, 3)])
def test_failed_shards_show_in_the_exit_code(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: int, code: int
) -> None:
    monkeypatch.setattr(stages, "extract_stage", lambda _: {"shards_failed": failed})
    assert invoke("extract", write_run_file(tree, tmp_path)).exit_code == code
    monkeypatch.setattr(whole, "run_all", lambda _: {"extract": {"shards_failed": failed}})
    assert invoke("run", write_run_file(tree, tmp_path), "--json").exit_code == code
