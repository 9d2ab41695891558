"""`mvqkd compare RUN.yaml...`: the students of some runs on one page."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mvqkd.pipeline.command import AsJson, Overrides
from mvqkd.pipeline.command import finish as _finish


def compare(
    run_files: Annotated[
        list[Path], typer.Argument(metavar="RUN.yaml", help="Run files (YAML).", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="PAGE.html", help="The page; the same as JSON goes beside it."),
    ] = Path("compare.html"),
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student", metavar="NAME", help="Only this student of each run; may be given several times."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="SYSTEM",
            help="What the others are measured against; by default baseline, or the first one without targets.",
        ),
    ] = None,
    utterances: Annotated[
        int, typer.Option("--utterances", min=0, help="How many of the worst utterances to show.")
    ] = 40,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Put students side by side: one HTML page that needs no server, and the same as JSON."""

    def work() -> dict[str, Any]:
        return write_comparison(
            run_files,
            out,
            students=student or [],
            reference=reference,
            worst=utterances,
            overrides=set_ or [],
        )

    def show(result: dict[str, Any]) -> None:
        print("\n".join(result["summary"]))
        print(f"page: {out}\nfigures: {out.with_suffix('.json')}")

    _finish(work, as_json, show)


def write_comparison(
    run_files: list[Path],
    out: Path,
    *,
    students: list[str],
    reference: str | None,
    worst: int,
    overrides: list[str],
) -> dict[str, Any]:
    """Write the page and the JSON file beside it; returns what the latter holds."""
    from dataclasses import asdict

    from mvqkd.pipeline.errors import ConfigError
    from mvqkd.pipeline.run_file import load_config
    from mvqkd.pipeline.run_folder import Run
    from mvqkd.pipeline.show.compare_page import render
    from mvqkd.pipeline.stages.compare import compare_runs

    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the page is HTML, so name it so, as in compare.html")
    if len({path.resolve() for path in run_files}) < len(run_files):
        raise ConfigError("a run file is named twice; name each once")
    runs = [Run(load_config(path, overrides)) for path in run_files]
    comparison = compare_runs(runs, students=students, reference=reference, worst=worst)
    text = json.dumps(asdict(comparison), ensure_ascii=False, allow_nan=False, indent=1)
    result: dict[str, Any] = json.loads(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Texts may hold what UTF-8 does not: halves of a pair, out of a JSON file.
    out.with_suffix(".json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    out.write_text(render(result), encoding="utf-8", errors="backslashreplace")
    return result
