"""What all commands share: their options, and how work ends in a result, a message, an exit code."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvqkd.pipeline.errors import PoolError, StageError, Terminated
from mvqkd.pipeline.show.result import json_line, print_figures

if TYPE_CHECKING:
    from mvqkd.pipeline.run_folder import Run

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
    typer.Option(
        "--student",
        metavar="NAME",
        help="A student of the run file; without a list there are mvqkd and baseline (no codes).",
    ),
]


def known_student(run: "Run", name: str | None) -> str:
    """The student that is meant, which the run file has; told before anything slow is imported."""
    name = run.config.default_student() if name is None else name
    run.config.student_settings(name)
    return name


def run_stage(
    work: Callable[["Run"], dict[str, Any]],
    run_file: Path,
    overrides: list[str] | None,
    as_json: bool,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Read the run file, work on its run, and finish as `finish` does."""

    def whole() -> dict[str, Any]:
        from mvqkd.pipeline.cluster.environment import in_ray_job
        from mvqkd.pipeline.run_file import load_config

        config = load_config(run_file, overrides or [])
        if in_ray_job():
            from mvqkd.pipeline.job_files import refuse_own_folders

            refuse_own_folders(config)
        from mvqkd.pipeline.run_folder import Run

        return work(Run(config))

    return finish(whole, as_json, show)


def finish(
    work: Callable[[], dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Do the work and print its result; turn expected errors into a message and an exit code."""
    try:
        result = work()
    # ValueError is what every room raises for bad input, with a message for the user; OSError is a disk's or a
    # network's.
    except (ValueError, StageError, PoolError, OSError) as error:
        print(f"mvqkd: {_message(error)}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        print("mvqkd: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(143 if Terminated.was_raised else 130) from error
    if as_json:
        print(json_line(result), flush=True)
    elif show is not None:
        show(result)
    else:
        print_figures(result)
    return result


def _message(error: Exception) -> str:
    """What the operating system says, in the order of all other messages: the place, then what is wrong."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    return str(error) or type(error).__name__
