"""Codes that others made, into an index table: shard by shard, committed and resumed as extraction is.

Shape suffixes: T frames, N codebooks.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lhotse import MonoCut
from lhotse.utils import compute_num_samples

from mvqkd.storage.contract import TableContract
from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.location import Location
from mvqkd.storage.rows import RRL_UNKNOWN, IndexRow
from mvqkd.storage.table import IndexTable
from mvqkd.workers.corpus.manifest import cut_of_object
from mvqkd.workers.cuts import cut_to_json, identity, speaker_of, text_of
from mvqkd.workers.exchange.contract import GivenQuantizer, KnownFacts, read_quantizer
from mvqkd.workers.exchange.foreign import ForeignCodes, ForeignCodesError, frame_rate_of
from mvqkd.workers.exchange.lines import CutLine, NoAudioKeyError, UnusableLine, key_of, read_manifest_lines
from mvqkd.workers.shard import digest_of

FRAMES_TOLERANCE, FRAMES_TOLERANCE_SHARE = 3, 0.02
"""Between the codes of a cut and what its length asks for: teachers leave frames out at the ends. A speed of 0.9 or 1.1
is five times as far off."""
Note = Callable[[str, int, int | None], None]


class ImportCodesError(ValueError):
    """Codes cannot be imported; the message names the place and the remedy."""


@dataclass(kw_only=True)
class _Shard:
    """Lines of a manifest that become one shard, as they stand."""

    lines: list[CutLine] = field(default_factory=list)
    bad: list[UnusableLine] = field(default_factory=list)
    hours: float = 0.0

    def add(self, item: CutLine | UnusableLine) -> None:
        if isinstance(item, UnusableLine):
            self.bad.append(item)
            return
        self.lines.append(item)
        duration_s = item.data.get("duration")
        self.hours += duration_s / 3600 if isinstance(duration_s, int | float) and duration_s > 0 else 0.0

    def name(self, prefix: str, position: int, contract: TableContract) -> str:
        """By content, as extraction names shards: the same lines are the same shard."""
        texts = [json.dumps(line.data, sort_keys=True) for line in self.lines]
        both = digest_of([*texts, *(bad.refused.reason for bad in self.bad), contract.digest()])
        return f"{prefix}-{position:06d}-{both[:12]}"


def import_codes(
    source: str,
    out: Location,
    known: KnownFacts,
    *,
    quantizer: str | None = None,
    cuts: str | None = None,
    field: str,
    root: str | None = None,
    shard_hours: float = 5.0,
    options: Mapping[str, Any],
    note: Note = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Import the codes of a manifest's cuts into a table.

    Args:
        source: a manifest of cuts with codes; or with `cuts` a folder of `.npy` files named by cut ids.
        out: the table, made or continued.
        known: what a person knows of the codes.
        quantizer: a checkpoint or a folder of the codes' quantizer, which is kept with the table.
        cuts: the manifest of the cuts that the `.npy` files are of.
        field: custom field of the codes.
        root: folder that relative paths of codes are under.
        shard_hours: of audio in a shard, about.
        options: of the storage section, for `s3://`.
        note: called as the work goes on.

    Raises:
        ImportCodesError: no cut has codes that can be used, or the table holds another import of this manifest.
        ContractError: what made the codes is not all known, or is not one thing.
        CorpusError, StorageError: the manifest cannot be read, or the table not be written.
    """
    is_manifest = source.endswith((".jsonl", ".jsonl.gz"))
    if is_manifest == (cuts is not None):
        raise ImportCodesError(
            f"{source}: give a manifest of cuts with codes (.jsonl, .jsonl.gz), or a folder of .npy files with --cuts"
        )
    manifest = cuts or source
    given = None if quantizer is None else read_quantizer(quantizer, options)
    if given is not None:
        known = known.and_from(given.where, **given.facts)
    with ForeignCodes(root=root, folder=None if is_manifest else source, options=options) as codes:
        contract = _contract(manifest, known, codes, field, options)
        table = IndexTable.create(out, contract)
        if given is not None:
            given.save(out)
        return _Importer(table, codes, field, given).run(manifest, shard_hours, options, note)


def _contract(
    manifest: str, known: KnownFacts, codes: ForeignCodes, field: str, options: Mapping[str, Any]
) -> TableContract:
    """The contract, completed by the first codes of the manifest."""
    first = "it is empty"
    for number, item in enumerate(read_manifest_lines(manifest, options)):
        if isinstance(item, UnusableLine):
            continue
        reference = _reference(item, field)
        try:
            codes_TN = codes.read(item.cut_id, reference)
        except ForeignCodesError as error:
            first = f"{item.cut_id!r}: {error}" if not number else first
            continue
        where = f"{item.source}:{item.line}"
        known = known.and_from(where, num_codebooks=codes_TN.shape[1])
        rate = frame_rate_of(reference)
        return (known if rate is None else known.and_from(where, frame_rate_hz=rate)).contract()
    raise ImportCodesError(f"{manifest}: no cut has codes that can be read, the first: {first}")


class _Importer:
    def __init__(
        self, table: IndexTable, codes: ForeignCodes, field: str, given: GivenQuantizer | None
    ) -> None:
        self._table, self._codes, self._field, self._given = table, codes, field, given
        self._left = Counter[str]()

    def run(
        self, manifest: str, shard_hours: float, options: Mapping[str, Any], note: Note
    ) -> dict[str, Any]:
        contract, location = self._table.contract, self._table.location
        stem = re.sub(r"[^A-Za-z0-9_=]+", "_", manifest.rstrip("/").rpartition("/")[2].split(".jsonl")[0])
        prefix = f"import-{stem}"
        before, names, rows, left, done = self._table.committed(), list[str](), 0, 0, 0
        for position, shard in enumerate(_in_shards(read_manifest_lines(manifest, options), shard_hours)):
            name = shard.name(prefix, position, contract)
            names.append(name)
            count = len(shard.lines) + len(shard.bad)
            made = self._table.summary_of(name).rows if name in before else self._commit(name, shard)
            rows, left, done = rows + made, left + count - made, done + count
            note("cuts", done, None)
        others = sorted(name for name in before - set(names) if name.startswith(f"{prefix}-"))
        if others:
            raise ImportCodesError(
                f"{location.url}: holds {len(others)} shards of another import of {manifest}, such as {others[0]}: the "
                "same cuts would be in it twice; delete them"
            )
        if not rows:
            raise ImportCodesError(
                f"{location.url}: no cut of {manifest} has codes that can be used; see its failures"
            )
        note("cuts", done, done)
        return {
            "table": location.url,
            "shards": len(names),
            "shards_done_before": len(before & set(names)),
            "cuts": done,
            "rows": rows,
            "left_out": left,
            "quantizer_kept": self._given is not None,
            "contract": json.loads(contract.to_json()),
        }

    def _commit(self, name: str, shard: _Shard) -> int:
        rows: dict[str, IndexRow] = {}
        failures = [self._failure(name, bad.refused.cut_id, bad.refused.reason) for bad in shard.bad]
        for line in shard.lines:
            try:
                if line.cut_id in rows:
                    raise ForeignCodesError("its id comes twice; rename one of the cuts")
                rows[line.cut_id] = self._row(line)
            except (ForeignCodesError, NoAudioKeyError) as error:
                where = f"{line.source}:{line.line}"
                failures.append(self._failure(name, line.cut_id, f"{where}: {line.cut_id!r}: {error}"))
        write_failures(self._table.location, name, failures)
        self._table.write_shard(name, rows.values())
        return len(rows)

    def _failure(self, shard: str, cut_id: str, message: str) -> Failure:
        return Failure(
            shard=shard, cut_id=cut_id, stage="import", error="ForeignCodesError", message=message, attempts=1
        )

    def _row(self, line: CutLine) -> IndexRow:
        contract = self._table.contract
        key = key_of(line.data)
        reference = _reference(line, self._field)
        rate = frame_rate_of(reference)
        if rate is not None and abs(rate - contract.frame_rate_hz) > 1e-3:
            raise ForeignCodesError(
                f"its codes are at {rate:g} Hz, the table's at {contract.frame_rate_hz:g}"
            )
        codes_TN = self._codes.read(line.cut_id, reference)
        _check(codes_TN, key.duration, contract)
        cut = self._cut(line)
        num_samples = compute_num_samples(cut.duration, contract.sample_rate_hz)
        return IndexRow(
            **identity(cut, num_samples),  # type: ignore[typeddict-item]
            cut_id=cut.id,
            num_frames=len(codes_TN),
            rrl=RRL_UNKNOWN,
            speaker=speaker_of(cut),
            text=text_of(cut),
            codes=codes_TN,
            cut=cut_to_json(cut),
        )

    def _cut(self, line: CutLine) -> MonoCut:
        """The cut without its codes, which are in the table then, and without features of another program."""
        data = json.loads(json.dumps(line.data))
        data.pop("features", None)
        if isinstance(data.get("custom"), dict):
            data["custom"].pop(self._field, None)
            if not data["custom"]:
                del data["custom"]
        cut = cut_of_object(data, f"{line.source}:{line.line}")
        if not isinstance(cut, MonoCut):
            raise ForeignCodesError(str(getattr(cut, "reason", getattr(cut, "problem", "is no plain cut"))))
        return cut


def _check(codes_TN: np.ndarray, duration_s: float, contract: TableContract) -> None:
    """Raise `ForeignCodesError` unless codes are of this contract and of a cut of this length."""
    num_frames, num_codebooks = codes_TN.shape
    if num_codebooks != contract.num_codebooks:
        raise ForeignCodesError(
            f"its codes have {num_codebooks} codebooks, the table {contract.num_codebooks}"
        )
    if codes_TN.max() >= contract.codebook_size:
        raise ForeignCodesError(
            f"code {codes_TN.max()} does not exist in codebooks of {contract.codebook_size}"
        )
    wanted = duration_s * contract.frame_rate_hz
    if abs(num_frames - wanted) > FRAMES_TOLERANCE + FRAMES_TOLERANCE_SHARE * wanted:
        raise ForeignCodesError(
            f"has {num_frames} frames of codes, but lasts {duration_s:g} s, which are {wanted:.0f}: they are of other "
            "audio, such as that before a change of speed or a trim; extract it again"
        )


def _reference(line: CutLine, name: str) -> object:
    custom = line.data.get("custom")
    return custom.get(name) if isinstance(custom, dict) else None


def _in_shards(items: Iterator[CutLine | UnusableLine], shard_hours: float) -> Iterator[_Shard]:
    shard = _Shard()
    for item in items:
        shard.add(item)
        if shard.hours >= shard_hours or len(shard.bad) >= 10_000:
            yield shard
            shard = _Shard()
    if shard.lines or shard.bad:
        yield shard
