"""What there is to train on: the run's table, other tables of speech without transcripts, what their rows are for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import say
from mvqkd.storage.errors import ContractError, TableError
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable
from mvqkd.storage.threads import READING_THREADS, map_in_order
from mvqkd.workers.distill.settings import DistillConfig

if TYPE_CHECKING:
    from mvqkd.workers.distill.job import Speech

Others = Sequence[tuple[IndexTable, str | None]]


@dataclass(frozen=True, kw_only=True)
class FoundSpeech:
    """What a training reads, and the transcripts that its units are made of."""

    speech: "Speech"
    texts: list[str]


def untranscribed_tables(run: Run, settings: DistillConfig, table: IndexTable) -> Others:
    """The tables of `distill.untranscribed_from`, each with the root of its audio.

    Raises:
        StageError: one is not there, is empty, or holds codes of another kind than the run's own table.
    """
    found = []
    for number, wanted in enumerate(settings.untranscribed_from):
        where = f"distill.untranscribed_from.{number}"
        location = open_location(wanted.table, options=run.config.storage.options)
        try:
            other = IndexTable.open(location)
            table.contract.require_same(other.contract, where=location.url)
        except (ContractError, TableError) as error:
            raise StageError(f"{where}: {error}") from error
        if not other.committed():
            raise StageError(f"{where}: {location.url} has no shards yet; `mvqkd extract` makes them")
        found.append((other, wanted.root or run.corpus_root))
    return found


def digest_of(others: Others) -> dict[str, Any]:
    """What of these tables makes another training; nothing where there are none."""
    return {"untranscribed_tables": [sorted(other.committed()) for other, _ in others]} if others else {}


def find_speech(run: Run, settings: DistillConfig, table: IndexTable, others: Others) -> FoundSpeech:
    """Look through the tables once, here: the workers need not, and a damaged or foreign file shows before any of
    them is asked for.

    Raises:
        StageError: nothing to train on, or nothing without transcripts where that is asked for.
        ValueError: no transcript, or a held-out part that leaves none.
    """
    from mvqkd.workers.distill.job import Speech
    from mvqkd.workers.distill.rows import scan_table

    scan = scan_table(
        table,
        valid_hours=settings.valid_hours,
        transcribed_hours=settings.transcribed_hours,
        pretrain=settings.pretrain,
        seed=settings.seed,
    )
    other_s, other_rows = 0.0, 0
    for other, _ in others:
        names = sorted(other.committed())
        for summary in map_in_order(other.summary_of, names, threads=READING_THREADS):
            other_s += summary.duration_s
            other_rows += summary.rows
    silent_s, silent_rows = scan.seconds.get("codes", 0.0) + other_s, scan.rows.get("codes", 0) + other_rows
    own_s, own_rows = scan.seconds.get("own", 0.0), scan.rows.get("own", 0)
    if settings.untranscribed and not silent_rows:
        raise StageError(
            f"distill.untranscribed {settings.untranscribed:g}: every row of {table.location.url} has a transcript "
            "that counts; name tables of other speech in distill.untranscribed_from, or set distill.transcribed_hours"
        )
    _tell(settings, own_s, silent_s, scan.seconds.get("valid", 0.0))
    speech = Speech(
        table=table,
        root=run.corpus_root,
        others=tuple(others),
        choice=scan.choice,
        epoch_s=silent_s if settings.pretrain else own_s,
        num_rows=silent_rows if settings.pretrain else own_rows + bool(settings.untranscribed) * silent_rows,
        valid=tuple(scan.valid),
    )
    return FoundSpeech(speech=speech, texts=scan.texts)


def _tell(settings: DistillConfig, own_s: float, silent_s: float, valid_s: float) -> None:
    """Where there is a choice, what it came to."""
    parts = [f"{own_s / 3600:.2f} h with transcripts"]
    if settings.untranscribed or settings.pretrain:
        parts.append(f"{silent_s / 3600:.2f} h without")
    if settings.valid_hours:
        parts.append(f"{valid_s / 3600:.2f} h held out")
    if len(parts) > 1:
        say(f"train on {', '.join(parts)}")
