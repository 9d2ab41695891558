"""The command line: help, JSON, errors and exit codes. What needs no Ray runs in this process."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import write_run_file
from typer.testing import CliRunner

from mvqkd import __version__
from mvqkd.pipeline import run_all as whole
from mvqkd.pipeline.cli import app
from mvqkd.pipeline.errors import PoolError, StageError
from mvqkd.pipeline.stages import extract as extract_module
from mvqkd.pipeline.stages import fit as fit_module
from mvqkd.storage.contract import TableContract
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "torchaudio",
    "lhotse",
    "ray",
    "transformers",
    "matplotlib",
    "soundfile",
    "pyarrow.dataset",
    "pandas",
    "s3fs",
}

runner = CliRunner()


def invoke(*arguments: str | Path) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_command() -> None:
    shown = invoke("--help").output
    for command in ("plan", "fit", "extract", "distill", "decode", "run", "init", "inspect"):
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
    assert "12 utterances" in result.stdout


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
    "error",
    [StageError("run fit"), PoolError("no workers"), ConnectionError("no cluster"), OSError("no space left")],
)
def test_expected_errors_are_messages(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(fit_module, "fit_stage", fail)
    result = invoke("fit", write_run_file(tree, tmp_path))
    assert (result.exit_code, result.stderr.strip()) == (2, f"mvqkd: {error}")


def test_programming_errors_are_not_hidden(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> dict[str, Any]:
        raise KeyError("bug")

    monkeypatch.setattr(fit_module, "fit_stage", fail)
    assert isinstance(invoke("fit", write_run_file(tree, tmp_path)).exception, KeyError)


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (2, 3)])
def test_failed_shards_show_in_the_exit_code(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: int, code: int
) -> None:
    monkeypatch.setattr(extract_module, "extract_stage", lambda _: {"shards_failed": failed})
    assert invoke("extract", write_run_file(tree, tmp_path)).exit_code == code
    monkeypatch.setattr(whole, "run_all", lambda _: {"extract": {"shards_failed": failed}})
    assert invoke("run", write_run_file(tree, tmp_path), "--json").exit_code == code


def test_errors_of_the_system_name_their_place(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> dict[str, Any]:
        return {"read": (tmp_path / "none" / "x").read_bytes()}

    monkeypatch.setattr(fit_module, "fit_stage", fail)
    result = invoke("fit", write_run_file(tree, tmp_path))
    problem = f"mvqkd: {tmp_path}/none/x: No such file or directory; check the path and its permissions"
    assert (result.exit_code, result.stderr.strip()) == (2, problem)


def test_an_interruption_is_one_line_and_exit_code_130(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "fit_stage", interrupt)
    result = invoke("fit", write_run_file(tree, tmp_path))
    assert (result.exit_code, len(result.stderr.splitlines())) == (130, 1)
    assert "the same command goes on where it stopped" in result.stderr


def test_a_run_file_that_cannot_be_read(tmp_path: Path) -> None:
    result = invoke("plan", tmp_path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert f"{tmp_path}: cannot be read (Is a directory)" in result.stderr


@pytest.mark.parametrize("command", ["distill", "decode"])
def test_an_unknown_student(tree: dict[str, Any], tmp_path: Path, command: str) -> None:
    result = invoke(command, write_run_file(tree, tmp_path), "--student", "mvkqd")
    assert result.exit_code == 2
    assert "no student 'mvkqd'; there are baseline, mvqkd" in result.stderr


def test_figures_that_json_has_no_number_for(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"rrl": float("nan"), "all": [1.5, float("inf")], "pairs": {"a": (2, float("-inf"))}}
    monkeypatch.setattr(fit_module, "fit_stage", lambda _: figures)
    result = invoke("fit", write_run_file(tree, tmp_path), "--json")
    assert result.stdout == '{"rrl": null, "all": [1.5, null], "pairs": {"a": [2, null]}}\n'


def test_the_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"mvqkd {__version__}\n")


def loaded_by(code: str, *arguments: str | Path) -> set[str]:
    """The heavy modules that a new process has after some code."""
    script = (
        f"import sys\nsys.argv = ['mvqkd', *sys.argv[1:]]\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
    )
    script += "print('MODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr
    return HEAVY & set(done.stdout.rsplit("MODULES", 1)[1].split())


COMMAND = "from mvqkd.pipeline.cli import main; main()"


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("inspect", "--help"), ("init", "--help"), ("inspect", "/nowhere")],
)
def test_light_commands_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded_by(COMMAND, *arguments) == set()


def test_inspect_of_a_table_imports_nothing_heavy(tmp_path: Path) -> None:
    contract = TableContract(
        teacher_fingerprint="0" * 16,
        teacher_name="t",
        layer=1,
        quantizer_id="q",
        num_codebooks=2,
        codebook_size=16,
        frame_rate_hz=50.0,
        frame_offset_s=0.0125,
        sample_rate_hz=16_000,
    )
    IndexTable.create(open_location(str(tmp_path)), contract)
    assert loaded_by(COMMAND, "inspect", tmp_path) == set()
    assert loaded_by(COMMAND, "inspect", tmp_path, "--set", "storage.region=x") == set()


def test_a_run_file_is_read_and_refused_without_anything_heavy(tree: dict[str, Any], tmp_path: Path) -> None:
    path = write_run_file(tree, tmp_path)
    read = "from mvqkd.pipeline.run_file import load_config; load_config(sys.argv[1])"
    assert loaded_by(read, path) == set()
    assert loaded_by(COMMAND, "run", path, "--set", "corpus.rot=x") == set()
    assert loaded_by(COMMAND, "distill", path, "--student", "x") == set()


def test_light_commands_are_quick(tmp_path: Path) -> None:
    """In processor seconds, which other work on the machine hardly changes: 0.3 for help, 0.6 for inspect."""
    for arguments in (("--help",), ("--version",), ("init", "--help"), ("inspect", str(tmp_path))):
        seconds = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "mvqkd", *arguments],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                capture_output=True,
                check=False,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(seconds) < 1.0, (arguments, seconds)


def test_names_that_the_terminal_has_no_letters_for(tmp_path: Path) -> None:
    (tmp_path / "transcripts.tsv").write_text("id\tsplit\tspeaker\ttext\n1\tTürkçe\ts\tA\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mvqkd", "init", str(tmp_path), "a/b", "-o", str(tmp_path / "run.yaml")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "corpus.train: T\\xfcrk\\xe7e" in done.stdout


def test_a_reader_that_stops_early() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mvqkd", "--help"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
