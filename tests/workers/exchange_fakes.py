"""A table of random codes of given cuts, and exports as tests ask for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource

from mvqkd.storage.contract import TableContract
from mvqkd.storage.location import open_location
from mvqkd.storage.rows import IndexRow
from mvqkd.storage.table import IndexTable
from mvqkd.workers.cuts import cut_to_json, identity
from mvqkd.workers.exchange.export import export
from mvqkd.workers.exchange.icefall import IcefallTarget
from mvqkd.workers.exchange.names import FIELD
from mvqkd.workers.exchange.shar import SharTarget

RATE = 16_000


def contract_of(**changes: Any) -> TableContract:
    values: dict[str, Any] = {
        "teacher_fingerprint": "a" * 64, "teacher_name": "hubert", "layer": 36, "quantizer_id": "abcdef01",
        "num_codebooks": 8, "codebook_size": 256, "frame_rate_hz": 50.0, "frame_offset_s": 0.0125,
        "sample_rate_hz": RATE,
    }  # fmt: skip
    return TableContract(**{**values, **changes})


def recording_of(name: str, seconds: float, *, channels: int = 1, path: str | None = None) -> Recording:
    return Recording(
        id=name,
        sources=[AudioSource("file", list(range(channels)), path or f"{name}.flac")],
        sampling_rate=RATE,
        num_samples=round(seconds * RATE),
        duration=round(seconds * RATE) / RATE,
    )


def cut_in(recording: Recording, start: float, duration: float, *, name: str, channel: int = 0) -> MonoCut:
    return MonoCut(id=name, start=start, duration=duration, channel=channel, recording=recording)


def frames_of(duration: float) -> int:
    """Of HuBERT."""
    return (round(duration * RATE) - 400) // 320 + 1


def make_coded_table(
    folder: Path, cuts: Sequence[MonoCut], *, per_shard: int = 3, seed: int = 0, **contract: Any
) -> tuple[IndexTable, dict[str, np.ndarray]]:
    """A table with random codes of the cuts, and the codes by cut id."""
    rng = np.random.default_rng(seed)
    table = IndexTable.create(open_location(str(folder)), contract_of(**contract))
    shape = (table.contract.num_codebooks,)
    codes = {
        cut.id: rng.integers(0, table.contract.codebook_size, (frames_of(cut.duration), *shape), np.uint8)
        for cut in cuts
    }
    for number, begin in enumerate(range(0, len(cuts), per_shard)):
        table.write_shard(
            f"shard-{number}", [_row(cut, codes[cut.id], rng) for cut in cuts[begin : begin + per_shard]]
        )
    return table, codes


def _row(cut: MonoCut, codes_TN: np.ndarray, rng: np.random.Generator) -> IndexRow:
    return IndexRow(
        **identity(cut, round(cut.duration * RATE)),  # type: ignore[typeddict-item]
        cut_id=cut.id, num_frames=len(codes_TN), rrl=float(rng.uniform(0.1, 0.3)), speaker=None, text=None,
        codes=codes_TN, cut=cut_to_json(cut),
    )  # fmt: skip


def to_icefall(out: Path, tables: Sequence[IndexTable], cuts: Sequence[Path], **more: Any) -> dict[str, Any]:
    names, fields = [str(path) for path in cuts], more.pop("fields", [FIELD])
    target = IcefallTarget(open_location(str(out)), tables, fields, names, **more)
    return export(tables, names, target, options={})


def to_shar(out: Path, tables: Sequence[IndexTable], cuts: Sequence[Path], **more: Any) -> dict[str, Any]:
    names = [str(path) for path in cuts]
    target = SharTarget(open_location(str(out)), tables, [FIELD], names, options={}, **more)
    return export(tables, names, target, options={})


def left_out(out: Path) -> dict[str, dict[str, Any]]:
    """What an export left out, by cut id."""
    lines = (json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines())
    return {line["cut_id"]: line for line in lines}
