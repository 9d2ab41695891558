"""The command line: `mvqkd plan | fit | calibrate | certify | extract | distill | decode | run RUN.yaml`,
`mvqkd compare RUN.yaml...`, `mvqkd submit STAGE RUN.yaml`, `mvqkd status RUN.yaml`, `mvqkd init CORPUS TEACHER`,
`mvqkd inspect TABLE`, `mvqkd export TABLE`, `mvqkd import SOURCE`, `mvqkd sql TABLE`,
`mvqkd transcribe STUDENT FILES`, `mvqkd onnx STUDENT OUT`."""

import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvqkd import __version__
from mvqkd.pipeline.cli_cluster import status, submit
from mvqkd.pipeline.cli_compare import compare
from mvqkd.pipeline.cli_students import onnx, transcribe
from mvqkd.pipeline.cli_tables import export, import_, sql
from mvqkd.pipeline.command import AsJson, Overrides, RunFile, StudentName
from mvqkd.pipeline.command import finish as _finish
from mvqkd.pipeline.command import known_student as _known_student
from mvqkd.pipeline.command import run_stage as _stage
from mvqkd.pipeline.errors import Terminated

if TYPE_CHECKING:
    from mvqkd.pipeline.run_folder import Run

app = typer.Typer(
    name="mvqkd",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Distil a large speech teacher into a small recognizer through codebook indexes (MVQ-KD).\n\n"
        "One run file describes a run; init writes one, configs/ holds examples. The stages are plan (cut the corpus "
        "into shards), fit (train the quantizer on a sample), extract (write the index table), distill (train a "
        "student), decode (recognize the test part); `run` does them all. calibrate and certify measure before an "
        "extraction. Every stage can be repeated: what is fitted, extracted or trained is not done again."
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mvqkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself; the app's help is what people see."""


# Each command imports its stage itself, so that none waits for what only another one needs.


@app.command()
def plan(
    run_file: RunFile,
    set_: Overrides = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            min=1e-6,
            metavar="HOURS",
            help="Hours of audio that one worker does in an hour; by default what calibrate found.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cut the corpus into shards and say what extraction will make, and what it takes."""

    def work(run: "Run") -> dict[str, Any]:
        from mvqkd.pipeline.stages.plan import plan_stage

        return plan_stage(run, rate)

    def show(summary: dict[str, Any]) -> None:
        from mvqkd.pipeline.show.preflight import print_plan

        print_plan(summary)

    _stage(work, run_file, set_, as_json, show=show)


@app.command()
def calibrate(
    run_file: RunFile,
    set_: Overrides = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1.0, help="How long to measure, after loading and warming up.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Preflight of an extraction: speed and memory of one worker, and whether teacher and quantizer know this audio."""

    def work(run: "Run") -> dict[str, Any]:
        from mvqkd.pipeline.stages.calibrate import calibrate_stage

        return calibrate_stage(run, seconds)

    def show(summary: dict[str, Any]) -> None:
        from mvqkd.pipeline.show.preflight import print_calibration

        print_calibration(summary)

    _stage(work, run_file, set_, as_json, show=show)


@app.command()
def fit(run_file: RunFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Train the quantizer on a sample of the corpus."""

    def work(run: "Run") -> dict[str, Any]:
        from mvqkd.pipeline.stages.fit import fit_stage

        return fit_stage(run)

    _stage(work, run_file, set_, as_json)


@app.command()
def certify(
    run_file: RunFile,
    set_: Overrides = None,
    hours: Annotated[float, typer.Option("--hours", min=1e-6, help="Of audio in the sample.")] = 0.25,
    as_json: AsJson = False,
) -> None:
    """Measure how much of the codes depends on how utterances are batched, and write it beside the table."""

    def work(run: "Run") -> dict[str, Any]:
        from mvqkd.pipeline.stages.certify import certify_stage

        return certify_stage(run, hours)

    from mvqkd.pipeline.stages.certify import show_certificate

    _stage(work, run_file, set_, as_json, show_certificate)


@app.command()
def extract(run_file: RunFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Write the index table; only shards that it does not have are computed."""

    def work(run: "Run") -> dict[str, Any]:
        from mvqkd.pipeline.stages.extract import extract_stage

        return extract_stage(run)

    if _stage(work, run_file, set_, as_json)["shards_failed"]:
        raise typer.Exit(3)


@app.command()
def distill(
    run_file: RunFile, set_: Overrides = None, student: StudentName = None, as_json: AsJson = False
) -> None:
    """Train a student from the index table."""

    def work(run: "Run") -> dict[str, Any]:
        name = _known_student(run, student)
        from mvqkd.pipeline.stages.distill import distill_stage

        return distill_stage(run, name)

    _stage(work, run_file, set_, as_json)


@app.command()
def decode(
    run_file: RunFile, set_: Overrides = None, student: StudentName = None, as_json: AsJson = False
) -> None:
    """Recognize the test part with a student and count the errors."""

    def work(run: "Run") -> dict[str, Any]:
        name = _known_student(run, student)
        from mvqkd.pipeline.stages.decode import decode_stage

        return decode_stage(run, name)

    _stage(work, run_file, set_, as_json)


@app.command()
def run(run_file: RunFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """All stages, with and without distillation, and a table of what came out."""

    def work(run: "Run") -> dict[str, Any]:
        from mvqkd.pipeline.run_all import run_all

        return run_all(run)

    def show(report: dict[str, Any]) -> None:
        from mvqkd.pipeline.show.run_table import print_report

        print_report(report)

    if _stage(work, run_file, set_, as_json, show=show)["extract"]["shards_failed"]:
        raise typer.Exit(3)


app.command()(submit)
app.command()(status)
app.command()(compare)
app.command()(export)
app.command("import")(import_)
app.command()(sql)
app.command()(transcribe)
app.command()(onnx)


@app.command()
def init(
    corpus: Annotated[
        str,
        typer.Argument(
            help="Folder with transcripts.tsv, Lhotse Shar folder or cut manifest (.jsonl, .jsonl.gz).",
            show_default=False,
        ),
    ],
    teacher: Annotated[
        str, typer.Argument(help="Folder of a transformers checkpoint, or a hub name.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN.yaml", help="Where to write it.")] = Path(
        "run.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented run file for a corpus and a teacher."""

    def work() -> dict[str, Any]:
        from mvqkd.pipeline.init import write_run_file

        return write_run_file(corpus, teacher, out, force=force)

    _finish(work, as_json)


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

    def work() -> dict[str, Any]:
        from mvqkd.storage.location import open_location
        from mvqkd.storage.summary import inspect_table
        from mvqkd.storage.table import IndexTable

        options: dict[str, str] = {}
        if set_:
            from mvqkd.pipeline.run_file import load_storage_config

            options = load_storage_config(table, set_).options
        location = open_location(table, options=options)
        if verify:
            IndexTable.open(location).verify()
        return inspect_table(location).to_dict()

    _finish(work, as_json)


def main() -> None:
    """Entry point: errors of the user's making are one message on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name in the results that the terminal has no letters for must not lose the result.
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(*_: object) -> None:
    raise Terminated
