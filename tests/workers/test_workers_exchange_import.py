"""Codes that others made into a table, and back: icefall's HDF5, SPEAR's .npy files with their quantizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exchange_fakes import contract_of, cut_in, frames_of, make_coded_table, recording_of, to_icefall
from lhotse import NumpyHdf5Writer
from lhotse.cut import MonoCut
from workers_fakes import write_manifest

from mvqkd.models.quantizer import Quantizer, load_reference_checkpoint, quantizer_from_arrays
from mvqkd.storage.artifacts import load_artifact
from mvqkd.storage.errors import ContractError
from mvqkd.storage.failures import read_failures
from mvqkd.storage.location import open_location
from mvqkd.storage.summary import inspect_table
from mvqkd.storage.table import IndexTable
from mvqkd.workers.cuts import cut_from_json
from mvqkd.workers.exchange.contract import KnownFacts
from mvqkd.workers.exchange.importer import ImportCodesError, import_codes
from mvqkd.workers.exchange.names import FIELD

KNOWN: dict[str, Any] = {
    "teacher_fingerprint": "a" * 64, "teacher_name": "hubert", "layer": 36, "quantizer_id": "abcdef01",
    "codebook_size": 256, "frame_offset_s": 0.0125, "sample_rate_hz": 16_000,
}  # fmt: skip


def import_all(source: Path, out: Path, known: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    facts = KnownFacts(**(KNOWN if known is None else known))
    return import_codes(
        str(source), open_location(str(out)), facts, **{"field": FIELD, "options": {}, **more}
    )


def some_cuts(count: int) -> list[MonoCut]:
    cuts = [
        cut_in(recording_of(f"r{i}", 6.0), 0.5 * (i % 2), 2.0 + 0.3 * i, name=f"r{i}-{i}")
        for i in range(count)
    ]
    return [*cuts, cuts[0].perturb_speed(0.9), cuts[1].perturb_speed(1.1)]


def with_icefalls_codes(folder: Path, cuts: list[MonoCut]) -> dict[str, np.ndarray]:
    """Codes as `extract_codebook_indexes_imp` stores them, whose start is 0 whatever that of the cut."""
    rng, codes = np.random.default_rng(0), {}
    with NumpyHdf5Writer(folder / "codes") as writer:
        for cut in cuts:
            codes[cut.id] = rng.integers(0, 256, (frames_of(cut.duration), 8), np.uint8)
            manifest = writer.store_array(
                key=cut.id, value=codes[cut.id], frame_shift=0.02, temporal_dim=0, start=0
            )
            cut.custom = {**(cut.custom or {}), FIELD: manifest}
    return codes


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["cut_id"]: row for row in IndexTable.open(open_location(str(folder))).iter_rows()}


def test_icefalls_codes(tmp_path):
    cuts = some_cuts(6)
    cuts[2].custom = {"mine": 3}
    codes = with_icefalls_codes(tmp_path, cuts)
    manifest = write_manifest(tmp_path / "cuts_train.jsonl", cuts)
    report = import_all(manifest, tmp_path / "table", shard_hours=0.002)
    assert (report["cuts"], report["rows"], report["left_out"]) == (8, 8, 0) and report["shards"] > 1
    assert report["contract"]["frame_rate_hz"] == 50.0 and report["contract"]["num_codebooks"] == 8
    assert report["contract"]["search"] == "imported"
    rows = rows_of(tmp_path / "table")
    for cut in cuts:
        row = rows[cut.id]
        assert np.array_equal(row["codes"], codes[cut.id])
        assert (row["start"], row["duration"], row["recording_id"]) == (
            cut.start,
            cut.duration,
            cut.recording.id,
        )
        assert FIELD not in (cut_from_json(row["cut"]).custom or {})
    assert rows["r0-0_sp0.9"]["speed"] == 0.9 and rows["r0-0_sp0.9"]["num_samples"] == 35_556
    assert cut_from_json(rows["r2-2"]["cut"]).custom == {"mine": 3}
    table = IndexTable.open(open_location(str(tmp_path / "table")))
    assert table.verify() == 8
    summary = inspect_table(table.location)
    assert summary.mean_rrl is None and summary.worst_rrl is None and summary.rows == 8


def test_there_and_back_again(tmp_path):
    """A table, exported for icefall, imported, exported again: the codes and what icefall reads are the same."""
    cuts = some_cuts(5)
    table, codes = make_coded_table(tmp_path / "table", cuts)
    to_icefall(tmp_path / "out", [table], [write_manifest(tmp_path / "m.jsonl", cuts)])
    known = {**KNOWN, "search": "full"}
    import_all(tmp_path / "out/m.jsonl", tmp_path / "again", known)
    again = IndexTable.open(open_location(str(tmp_path / "again")))
    assert again.contract == table.contract
    assert {name: row["codes"].tobytes() for name, row in rows_of(tmp_path / "again").items()} == {
        name: value.tobytes() for name, value in codes.items()
    }
    to_icefall(tmp_path / "out2", [again], [tmp_path / "m.jsonl"])
    texts = [(tmp_path / out / "m.jsonl").read_text().replace(f"/{out}/", "/") for out in ("out", "out2")]
    assert texts[0] == texts[1]


def test_it_goes_on_where_it_stopped(tmp_path):
    cuts = some_cuts(6)
    with_icefalls_codes(tmp_path, cuts)
    manifest = write_manifest(tmp_path / "m.jsonl", cuts)
    import_all(manifest, tmp_path / "table", shard_hours=0.002)
    files = {path.name: path.read_bytes() for path in (tmp_path / "table").glob("*.parquet")}
    (tmp_path / "table" / sorted(files)[1]).unlink()
    report = import_all(manifest, tmp_path / "table", shard_hours=0.002)
    assert report["shards_done_before"] == len(files) - 1 and report["rows"] == 8
    assert {path.name: path.read_bytes() for path in (tmp_path / "table").glob("*.parquet")} == files
    with pytest.raises(ImportCodesError, match="of another import"):
        import_all(manifest, tmp_path / "table", shard_hours=1.0)


def test_spears_files_and_their_quantizer(tmp_path):
    """One file for each cut, named in the manifest or by its id; a quantizer with its normalization."""
    torch.manual_seed(0)
    state = Quantizer(dim=12, codebook_size=16, num_codebooks=4).state_dict()
    torch.save(
        {"quantizer": state, "mean": torch.randn(12), "std": torch.rand(12) + 0.5}, tmp_path / "quantizer.pt"
    )
    rng, codes, lines = np.random.default_rng(0), {}, []
    cuts = some_cuts(4)[:4]
    for cut in cuts:
        path = tmp_path / "npy" / "/".join(cut.id.split("-")[:2]) / f"{cut.id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        codes[cut.id] = rng.integers(0, 16, (frames_of(cut.duration), 4))
        np.save(path, codes[cut.id])
        info = {"path": str(path), "shape": list(codes[cut.id].shape), "frame-shift": 0.02}
        lines.append({**cut.to_dict(), "custom": {FIELD: info}})
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = write_manifest(tmp_path / "plain.jsonl", cuts)
    known = {k: v for k, v in KNOWN.items() if k not in ("quantizer_id", "codebook_size")}
    quantizer = str(tmp_path / "quantizer.pt")
    import_all(tmp_path / "named.jsonl", tmp_path / "a", known, quantizer=quantizer)
    with pytest.raises(ContractError, match="--frame-rate"):
        import_all(tmp_path / "npy", tmp_path / "b", known, quantizer=quantizer, cuts=str(plain))
    known["frame_rate_hz"] = 50.0
    import_all(tmp_path / "npy", tmp_path / "b", known, quantizer=quantizer, cuts=str(plain))
    loaded = load_reference_checkpoint(quantizer)
    for folder in ("a", "b"):
        rows = rows_of(tmp_path / folder)
        assert all(np.array_equal(rows[name]["codes"], value) for name, value in codes.items())
        table = IndexTable.open(open_location(str(tmp_path / folder)))
        assert table.contract.quantizer_id == loaded.get_id() and table.contract.codebook_size == 16
        kept = quantizer_from_arrays(*load_artifact(table.location.join("_quantizer"), "quantizer"))
        frames = torch.tensor(codes["r0-0"])
        assert torch.equal(kept.decode(frames), loaded.decode(frames))
    with pytest.raises(ContractError, match=r"codebook_size is 16, but 256 was given"):
        import_all(
            tmp_path / "named.jsonl", tmp_path / "c", {**known, "codebook_size": 256}, quantizer=quantizer
        )


def test_nothing_is_guessed(tmp_path):
    cuts = some_cuts(2)
    with_icefalls_codes(tmp_path, cuts)
    manifest = write_manifest(tmp_path / "m.jsonl", cuts)
    with pytest.raises(ContractError) as error:
        import_all(manifest, tmp_path / "table", {})
    for option in ("--teacher-fingerprint", "--layer", "--quantizer", "--frame-offset", "--sample-rate"):
        assert option in str(error.value)
    assert "--frame-rate" not in str(error.value), "the manifest says it"
    with pytest.raises(ContractError, match=r"frame_rate_hz is 50\.0, but 25\.0 was given"):
        import_all(manifest, tmp_path / "table", {**KNOWN, "frame_rate_hz": 25.0})
    assert not (tmp_path / "table").exists()
    with pytest.raises(ImportCodesError, match="with --cuts"):
        import_all(tmp_path, tmp_path / "table")
    other = contract_of(layer=3)
    IndexTable.create(open_location(str(tmp_path / "other")), other)
    with pytest.raises(ContractError, match="layer"):
        import_all(manifest, tmp_path / "other")


def test_codes_of_other_audio_are_left_out_and_named(tmp_path):
    cuts = some_cuts(3)[:3]
    codes = with_icefalls_codes(tmp_path, cuts)
    stale = cuts[0].perturb_speed(1.1)  # Lhotse keeps the codes of before
    trimmed = cuts[2].truncate(duration=1.0).with_id("trimmed")
    lines = [json.loads(json.dumps(cut.to_dict())) for cut in [*cuts, stale, trimmed, cuts[1]]]
    gone, lossy, none = (
        json.loads(json.dumps(lines[0])) | {"id": name} for name in ("gone", "lossy", "none")
    )
    gone["custom"][FIELD]["array"]["storage_key"] = "nowhere"
    lossy["custom"][FIELD]["array"]["storage_type"] = "lilcom_hdf5"
    del none["custom"]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in [*lines, gone, lossy, none]) + "[1]\n")
    report = import_all(manifest, tmp_path / "table")
    assert (report["cuts"], report["rows"], report["left_out"]) == (10, 3, 7)
    failures = {
        failure.cut_id: failure.message for failure in read_failures(open_location(str(tmp_path / "table")))
    }
    assert "of other audio" in failures[stale.id] and "of other audio" in failures["trimmed"]
    assert "comes twice" in failures["r1-1"]
    assert "cannot be read" in failures["gone"]
    assert "lilcom_hdf5" in failures["lossy"]
    assert "no codes in this field" in failures["none"]
    assert f"{manifest}:10" in failures
    rows = rows_of(tmp_path / "table")
    assert all(np.array_equal(rows[cut.id]["codes"], codes[cut.id]) for cut in cuts)


@pytest.mark.parametrize(
    "codes",
    [np.full((99, 8), 256), np.full((99, 8), -1), np.zeros((99, 8), np.float32), np.zeros(99, np.uint8)],
)
def test_what_is_no_code(tmp_path, codes):
    np.save(tmp_path / "a.npy", codes)
    manifest = write_manifest(tmp_path / "m.jsonl", [cut_in(recording_of("r", 2.0), 0.0, 2.0, name="a")])
    with pytest.raises(ImportCodesError, match="its codes"):
        import_all(tmp_path, tmp_path / "table", {**KNOWN, "frame_rate_hz": 50.0}, cuts=str(manifest))


def test_a_pickle_is_not_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    manifest = write_manifest(tmp_path / "m.jsonl", [cut_in(recording_of("r", 2.0), 0.0, 2.0, name="a")])
    with pytest.raises(ImportCodesError, match="allow_pickle=False"):
        import_all(tmp_path, tmp_path / "table", {**KNOWN, "frame_rate_hz": 50.0}, cuts=str(manifest))
