"""Exchange with other trainers: codes of tables onto cut manifests, and codes that others made into a table."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.show.progress import Bar, bar
from mvqkd.storage.contract import CODES
from mvqkd.storage.location import Location
from mvqkd.storage.table import IndexTable

if TYPE_CHECKING:
    from mvqkd.workers.exchange.export import Target

_UNITS = {"index": "shards", "codes": "shards"}


def export_stage(
    tables: Sequence[Location],
    *,
    to: str,
    cuts: Sequence[str],
    out: Location,
    fields: Sequence[str],
    audio: str | None,
    root: str | None,
    options: Mapping[str, Any],
    force: bool,
) -> dict[str, Any]:
    """Export the codes of tables; see `workers.exchange.export`.

    Raises:
        StageError: `to` or `audio` is no format.
        ExportError, TableError, ContractError, CorpusError, StorageError: as of `export` and its targets.
    """
    from mvqkd.workers.exchange.export import export
    from mvqkd.workers.exchange.icefall import IcefallTarget
    from mvqkd.workers.exchange.names import field_names
    from mvqkd.workers.exchange.shar import SharTarget

    if audio not in (None, "flac", "wav"):
        raise StageError(f"--audio {audio}: give flac or wav")
    opened = [IndexTable.open(location) for location in tables]
    for table in opened:
        table.contract.require_payload(CODES, where=table.location.url)
    names = field_names([table.contract for table in opened], fields)
    target: Target
    if to == "icefall":
        if audio:
            raise StageError("--audio: icefall's manifests refer to audio and features; leave it out")
        target = IcefallTarget(out, opened, names, cuts, root=root, force=force)
    elif to == "lhotse-shar":
        target = SharTarget(out, opened, names, cuts, audio=audio, root=root, options=options, force=force)
    else:
        raise StageError(f"--to {to}: give icefall or lhotse-shar")
    with ExitStack() as bars:
        return export(opened, cuts, target, options=options, note=_Bars("export", bars).update)


def import_stage(
    source: str,
    out: Location,
    known: Mapping[str, Any],
    *,
    quantizer: str | None,
    cuts: str | None,
    field: str,
    root: str | None,
    shard_hours: float,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Import codes into a table; see `workers.exchange.importer`. `known` are fields of `KnownFacts`.

    Raises:
        ImportCodesError, TableError, ContractError, CorpusError, StorageError: as of `import_codes`.
    """
    from mvqkd.workers.exchange.contract import KnownFacts
    from mvqkd.workers.exchange.importer import import_codes

    with ExitStack() as bars:
        return import_codes(
            source,
            out,
            KnownFacts(**known),
            quantizer=quantizer,
            cuts=cuts,
            field=field,
            root=root,
            shard_hours=shard_hours,
            options=options,
            note=_Bars("import", bars).update,
        )


class _Bars:
    """A bar for each part of the work, one after the other."""

    def __init__(self, title: str, open_bars: ExitStack) -> None:
        self._title, self._open, self._stage = title, open_bars, ""
        self._bar: Bar | None = None

    def update(self, stage: str, done: int, total: int | None) -> None:
        whole = float("inf") if total is None else total
        if stage != self._stage:
            self._open.close()
            unit = _UNITS.get(stage, "cuts")
            self._bar = self._open.enter_context(bar(f"{self._title}: {stage}", total=whole, unit=unit))
            self._stage = stage
        assert self._bar is not None
        # To show a cut costs more than to work on it.
        if stage in _UNITS or done % 256 == 0 or done == total:
            self._bar.update(done, total=whole)
