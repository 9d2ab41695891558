"""The commands about trained students: `mvqkd transcribe STUDENT FILES...`, `mvqkd onnx STUDENT OUT`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mvqkd.pipeline.command import AsJson, Overrides, StudentName
from mvqkd.pipeline.command import finish as _finish

Student = Annotated[
    str,
    typer.Argument(
        metavar="STUDENT",
        help="Folder or s3:// url of a trained student, or a run file.",
        show_default=False,
    ),
]


class Search(StrEnum):
    """How a student is searched, as `decode.search` in a run file."""

    GREEDY = "greedy"
    BEAM = "beam"
    MODIFIED_BEAM = "modified_beam"


class Device(StrEnum):
    """Where a student runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def transcribe(
    student: Student,
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Audio files.", show_default=False)],
    set_: Overrides = None,
    name: StudentName = None,
    search: Annotated[
        Search | None, typer.Option("--search", help="By default as the run file says, or greedy.")
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option("--beam", min=1, max=64, help="Hypotheses; without --search, of beam search."),
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            "--window", metavar="S", help="Longer files are cut where it is quiet; as long as training's."
        ),
    ] = 30.0,
    channel: Annotated[
        int | None, typer.Option("--channel", min=0, help="To hear one channel; all are averaged by default.")
    ] = None,
    batch_seconds: Annotated[
        float, typer.Option("--batch-seconds", min=1.0, help="Audio of a batch, padding included.")
    ] = 120.0,
    device: Annotated[Device, typer.Option("--device")] = Device.AUTO,
    as_json: AsJson = False,
) -> None:
    """Print what is said in audio files, a line for each: the file, a tab, the text."""

    def work() -> dict[str, Any]:
        from dataclasses import replace

        from mvqkd.pipeline.errors import StageError
        from mvqkd.pipeline.stages.trained import find_trained
        from mvqkd.pipeline.stages.transcribe import TranscribeSettings
        from mvqkd.pipeline.stages.transcribe import transcribe as transcribe_files

        trained = find_trained(student, name, set_ or [])
        if search is Search.GREEDY and beam is not None:
            raise StageError(
                f"--beam {beam}: greedy search keeps one hypothesis; leave it out, or take --search beam"
            )
        wanted = trained.decode.model_dump()
        wanted["beam"] = wanted["beam"] if beam is None else beam
        if search is not None:
            wanted["search"] = search.value
        elif beam is not None and wanted["search"] == "greedy":
            wanted["search"] = "beam"
        decode = type(trained.decode)(**wanted)
        settings = TranscribeSettings(
            window_s=window, channel=channel, batch_seconds=batch_seconds, device=device.value
        )
        return transcribe_files(replace(trained, decode=decode), files, settings, as_json=as_json)

    if _finish(work, as_json, lambda result: None)["failed"]:
        raise typer.Exit(3)


def onnx(
    student: Student,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the files.", show_default=False)],
    set_: Overrides = None,
    name: StudentName = None,
    as_json: AsJson = False,
) -> None:
    """Export a student that takes fbank to ONNX, for sherpa-onnx."""

    def work() -> dict[str, Any]:
        from mvqkd.pipeline.stages.onnx import onnx_stage
        from mvqkd.pipeline.stages.trained import find_trained

        return onnx_stage(find_trained(student, name, set_ or []), out)

    _finish(work, as_json)
