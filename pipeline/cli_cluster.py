"""The commands about a run somewhere else: `mvqkd submit STAGE RUN.yaml`, `mvqkd status RUN.yaml`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvqkd.pipeline.command import AsJson, Overrides, RunFile, StudentName
from mvqkd.pipeline.command import finish as _finish
from mvqkd.pipeline.command import run_stage as _stage

if TYPE_CHECKING:
    from mvqkd.pipeline.run_folder import Run


def submit(
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help="One of the stages, or run.", show_default=False)
    ],
    run_file: RunFile,
    address: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="The dashboard of the cluster, as in http://127.0.0.1:8265.",
        ),
    ],
    set_: Overrides = None,
    student: StudentName = None,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", metavar="PATH", help="A file, or a folder of Python files, to take along."),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a stage as a job on a Ray cluster, follow its log, and end with its exit code."""

    def work() -> dict[str, Any]:
        from mvqkd.pipeline.job_files import prepare_job

        job = prepare_job(
            stage,
            run_file,
            overrides=set_ or [],
            student=student,
            include=include or [],
            as_json=as_json and not no_wait,
        )
        from mvqkd.pipeline.cluster.submit import submit_and_follow

        name, code = submit_and_follow(address, job, wait=not no_wait)
        return {"submission_id": name, "exit_code": code}

    # A log that was followed ends with the stage's own result.
    result = _finish(work, as_json and no_wait, None if no_wait else lambda result: None)
    if result["exit_code"]:
        raise typer.Exit(result["exit_code"])


def status(
    run_file: RunFile,
    set_: Overrides = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every ten seconds, until nothing works any more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """How far the extraction is, from storage alone, also after the cluster is gone."""
    from mvqkd.pipeline.show.status_page import print_status
    from mvqkd.pipeline.show.status_page import watch as watch_it

    def work(run: "Run") -> dict[str, Any]:
        from mvqkd.pipeline.stages.status import run_status

        return watch_it(lambda: run_status(run)) if watch else run_status(run)

    _stage(work, run_file, set_, as_json, show=print_status)
