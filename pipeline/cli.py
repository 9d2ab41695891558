"""The command line: `mvqkd plan | fit | extract | distill | decode | run RUN.yaml`, `mvqkd inspect TABLE`."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="mvqkd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Distil a large speech teacher into a small recognizer through codebook indexes (MVQ-KD).\n\n"
        "One run file describes a run; configs/ holds examples. The stages are plan (cut the corpus into shards), "
        "fit (train the quantizer on a sample), extract (write the index table), distill (train a student), decode "
        "(recognize the test part); `run` does them all. Every stage can be repeated: what is fitted, "
        "extracted or trained is not done again."
    ),
)

RunFile = Annotated[Path, typer.Argument(help="The run file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in --set distill.lr=5e-4."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one line of JSON, last on standard output.")
]
StudentName = Annotated[
    str | None,
    typer.Option("--student", metavar="NAME", help="mvqkd, or baseline for the same student without codes."),
]


@app.command()
def plan(run_file: RunFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Cut the corpus into shards and say what extraction will make."""
    from mvqkd.pipeline import stages

    _stage(stages.plan_stage, run_file, set_, as_json)


@app.command()
def fit(run_file: RunFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Train the quantizer on a sample of the corpus."""
    from mvqkd.pipeline import stages

    _stage(stages.fit_stage, run_file, set_, as_json)


@app.command()
def extract(run_file: RunFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Write the index table; only shards that it does not have are computed."""
    from mvqkd.pipeline import stages

    result = _stage(stages.extract_stage, run_file, set_, as_json)
    if result["shards_failed"]:
        raise typer.Exit(3)


@app.command()
def distill(
    run_file: RunFile, set_: Overrides = None, student: StudentName = None, as_json: AsJson = False
) -> None:
    """Train a student from the index table."""
    from mvqkd.pipeline import students

    _stage(lambda run: students.distill_stage(run, student), run_file, set_, as_json)


@app.command()
def decode(
    run_file: RunFile, set_: Overrides = None, student: StudentName = None, as_json: AsJson = False
) -> None:
    """Recognize the test part with a student and count the errors."""
    from mvqkd.pipeline import students

    _stage(lambda run: students.decode_stage(run, student), run_file, set_, as_json)


@app.command()
def run(run_file: RunFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """All stages, with and without distillation, and a table of what came out."""
    from mvqkd.pipeline import run_all as whole

    result = _stage(whole.run_all, run_file, set_, as_json, show=whole.print_report)
    if result["extract"]["shards_failed"]:
        raise typer.Exit(3)


@app.command()
def inspect(
    table: Annotated[str, typer.Argument(help="Folder or s3:// url of an index table.", show_default=False)],
    set_: Overrides = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="First read every shard whole and check it; damaged ones are named."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Contract, rows, hours, bytes, reconstruction loss and code usage of an index table."""
    from mvqkd.pipeline.run_config import load_storage_config
    from mvqkd.storage.location import open_location
    from mvqkd.storage.summary import inspect_table
    from mvqkd.storage.table import IndexTable

    def look() -> dict[str, Any]:
        location = open_location(table, options=load_storage_config(table, set_ or []).options)
        if verify:
            IndexTable.open(location).verify()
        return inspect_table(location).to_dict()

    _finish(look, as_json)


def main() -> None:
    """Entry point: errors of the user's making are one message on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app()


def _stage(
    work: Callable[[Any], dict[str, Any]],
    run_file: Path,
    overrides: list[str] | None,
    as_json: bool,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    from mvqkd.pipeline.run_config import load_config
    from mvqkd.pipeline.run_folder import Run

    return _finish(lambda: work(Run(load_config(run_file, overrides or []))), as_json, show)


def _finish(
    work: Callable[[], dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Do the work and print its result; turn expected errors into a message and an exit code."""
    from mvqkd.pipeline.cluster.dispatch import PoolError
    from mvqkd.pipeline.stages import StageError

    try:
        result = work()
    # ValueError is what every room raises for bad input, with a message for the user.
    except (ValueError, StageError, PoolError, ConnectionError) as error:
        print(f"mvqkd: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if as_json:
        print(json.dumps(result), flush=True)
    elif show is not None:
        show(result)
    else:
        _print_result(result)
    return result


def _print_result(result: dict[str, Any], prefix: str = "") -> None:
    for key, value in result.items():
        if isinstance(value, dict) and len(value) > 24:
            print(f"{prefix}{key}: {len(value)} values, see --json")
        elif isinstance(value, dict):
            _print_result(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 8:
            print(f"{prefix}{key}: {len(value)} values, see --json")
        else:
            print(f"{prefix}{key}: {value:.6g}" if isinstance(value, float) else f"{prefix}{key}: {value}")
