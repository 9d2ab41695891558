"""The commands about tables elsewhere: `mvqkd export TABLE`, `mvqkd import SOURCE`, `mvqkd sql TABLE [OTHER]`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvqkd.pipeline.command import AsJson, Overrides
from mvqkd.pipeline.command import finish as _finish

if TYPE_CHECKING:
    from mvqkd.storage.location import Location

_TABLE = "Folder or s3:// url of an index table"
Root = Annotated[
    str | None,
    typer.Option("--root", metavar="FOLDER", help="Folder that relative paths in manifests are under."),
]


Cuts = Annotated[
    list[str] | None,
    typer.Option(
        "--cuts",
        metavar="MANIFEST",
        help="Your cut manifest (.jsonl, .jsonl.gz), more than once for several, or a Shar folder; by default the cuts "
        "that the table was made of.",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="NAME",
        help="Custom field of the codes, one for each table; may hold {layer}, {codebooks}, {teacher}. By default "
        "codebook_indexes, or codebook_indexes_layer{layer}_cb{codebooks} for several tables.",
    ),
]
NpyCuts = Annotated[
    str | None,
    typer.Option("--cuts", metavar="MANIFEST", help="The cuts that a folder of .npy files is of."),
]
Quantizer = Annotated[
    str | None,
    typer.Option(
        "--quantizer",
        metavar="PATH",
        help="The codes' quantizer, which is kept with the table: a .pt of multi_quantization or SPEAR, or a folder "
        "that `mvqkd fit` wrote.",
    ),
]
QuantizerId = Annotated[
    str | None, typer.Option("--quantizer-id", metavar="ID", help="Where the quantizer is lost.")
]
TeacherName = Annotated[str | None, typer.Option("--teacher-name", metavar="NAME")]
Fingerprint = Annotated[
    str | None, typer.Option("--teacher-fingerprint", metavar="TEXT", help="What no other checkpoint has.")
]
CodebookSize = Annotated[int | None, typer.Option("--codebook-size", min=2, max=256)]
Layer = Annotated[
    int | None, typer.Option("--layer", min=0, help="Transformer layers that embeddings went through.")
]
FrameRate = Annotated[
    float | None,
    typer.Option("--frame-rate", metavar="HZ", help="Of the codes, where the manifest does not say."),
]
FrameOffset = Annotated[
    float | None,
    typer.Option("--frame-offset", metavar="S", help="Middle of the first frame; HuBERT: 0.0125."),
]
SampleRate = Annotated[
    int | None, typer.Option("--sample-rate", metavar="HZ", help="That the teacher takes.")
]
Search = Annotated[
    str | None,
    typer.Option("--search", metavar="NAME", help="How the codes were searched, if it was by this program."),
]


def export(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE...", help=f"{_TABLE}; a cut needs codes in all.", show_default=False),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="icefall or lhotse-shar.", show_default=False)
    ],
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="Where to write.", show_default=False)],
    cuts: Cuts = None,
    fields: Fields = None,
    audio: Annotated[
        str | None,
        typer.Option(
            "--audio", metavar="FORMAT", help="flac or wav: write the audio into a Shar folder too."
        ),
    ] = None,
    root: Root = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Put a table's codes onto your own cut manifests, for icefall's recipes or as a Lhotse Shar folder."""

    def work() -> dict[str, Any]:
        from mvqkd.pipeline.stages.exchange import export_stage

        return export_stage(
            [_location(table, set_) for table in tables],
            to=to,
            cuts=cuts or [],
            out=_location(out, set_),
            fields=fields or [],
            audio=audio,
            root=root,
            options=_options(set_),
            force=force,
        )

    def show(result: dict[str, Any]) -> None:
        from mvqkd.pipeline.show.progress import say
        from mvqkd.pipeline.show.result import print_figures

        print_figures({name: value for name, value in result.items() if name not in ("tables", "notes")})
        for note in result["notes"]:
            say(f"note: {note}")

    _finish(work, as_json, show)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Manifest of cuts with codes (.jsonl, .jsonl.gz), or a folder of .npy files with --cuts.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", metavar="TABLE", help="The table to write.", show_default=False)
    ],
    cuts: NpyCuts = None,
    field: Annotated[
        str, typer.Option("--field", metavar="NAME", help="Custom field of the codes.")
    ] = "codebook_indexes",
    quantizer: Quantizer = None,
    quantizer_id: QuantizerId = None,
    codebook_size: CodebookSize = None,
    teacher_name: TeacherName = None,
    teacher_fingerprint: Fingerprint = None,
    layer: Layer = None,
    frame_rate_hz: FrameRate = None,
    frame_offset_s: FrameOffset = None,
    sample_rate_hz: SampleRate = None,
    search: Search = None,
    root: Root = None,
    shard_hours: Annotated[float, typer.Option("--shard-hours", min=1e-6, help="Of audio in a file.")] = 5.0,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Put codes that others made, icefall's HDF5 or SPEAR's .npy files, into an index table."""
    facts: dict[str, Any] = {
        "teacher_fingerprint": teacher_fingerprint,
        "teacher_name": teacher_name,
        "layer": layer,
        "quantizer_id": quantizer_id,
        "codebook_size": codebook_size,
        "frame_rate_hz": frame_rate_hz,
        "frame_offset_s": frame_offset_s,
        "sample_rate_hz": sample_rate_hz,
        "search": search,
    }

    def work() -> dict[str, Any]:
        from mvqkd.pipeline.stages.exchange import import_stage

        return import_stage(
            source,
            _location(out, set_),
            facts,
            quantizer=quantizer,
            cuts=cuts,
            field=field,
            root=root,
            shard_hours=shard_hours,
            options=_options(set_),
        )

    _finish(work, as_json)


def sql(
    table: Annotated[str, typer.Argument(help=f"{_TABLE}.", show_default=False)],
    other: Annotated[
        str | None, typer.Argument(help="Another one, to compare with: views drift, drift_codes, drift_cuts.")
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", metavar="SQL", help="Print its result as CSV, and end.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Ask an index table in SQL (DuckDB): dead codes, use by speaker, outliers, hours and bytes, drift."""

    def work() -> dict[str, Any]:
        from mvqkd.pipeline.stages.query import query_stage

        places = [_location(table, set_), None if other is None else _location(other, set_)]
        return query_stage(places[0], places[1], query, as_json=as_json)  # type: ignore[arg-type]

    _finish(work, as_json, lambda result: None)
    sys.stdout.flush()


def _options(overrides: list[str] | None) -> dict[str, str]:
    """Options of the storage section, for `s3://`."""
    if not overrides:
        return {}
    from mvqkd.pipeline.run_file import load_storage_config

    return dict(load_storage_config("s3://bucket", overrides).options)


def _location(url: str, overrides: list[str] | None) -> "Location":
    from mvqkd.storage.location import open_location

    return open_location(url, options=_options(overrides) if url.startswith("s3://") else None)
