"""Names of fields, and what an export refuses or leaves behind."""

import gzip
import json
import sys

import pytest
from exchange_fakes import contract_of, cut_in, make_coded_table, recording_of, to_icefall
from workers_fakes import write_manifest

from mvqkd.storage.location import open_location
from mvqkd.workers.exchange.icefall import IcefallTarget
from mvqkd.workers.exchange.names import ExportError, field_names


def test_names_of_fields():
    one, two = contract_of(layer=1), contract_of(teacher_name="zipformer-l 56", layer=1)
    assert field_names([one], []) == ("codebook_indexes",)
    assert field_names([one, two], []) == (
        "codebook_indexes_layer1_cb8_hubert",
        "codebook_indexes_layer1_cb8_zipformer_l_56",
    )
    assert field_names([one, two], ["a", "firered_codebook_indexes"]) == ("a", "firered_codebook_indexes")
    assert field_names([one], ["codebook_indexes_layer{layer}_cb{codebooks}"]) == (
        "codebook_indexes_layer1_cb8",
    )
    with pytest.raises(ExportError, match="two tables have the name"):
        field_names([one, one], [])
    for bad in ("a-b", "cuts", "{nothing}", "{layer.real}", ""):
        with pytest.raises(ExportError, match="--field"):
            field_names([one], [bad])


def test_an_export_is_not_written_over(tmp_path):
    cut = cut_in(recording_of("r", 2.0), 0.0, 2.0, name="a")
    table, _ = make_coded_table(tmp_path / "table", [cut])
    manifest = write_manifest(tmp_path / "m.jsonl", [cut])
    with pytest.raises(ExportError, match="written over by its copy"):
        to_icefall(tmp_path, [table], [manifest])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/m.jsonl").write_text("mine")
    with pytest.raises(ExportError, match="of no export"):
        to_icefall(tmp_path / "mine", [table], [manifest])
    to_icefall(tmp_path / "out", [table], [manifest])
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ExportError, match="--force"):
        to_icefall(tmp_path / "out", [table], [manifest])
    to_icefall(tmp_path / "out", [table], [manifest], force=True)
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert {n: d for n, d in after.items() if not n.endswith(".h5")} == {
        n: d for n, d in before.items() if not n.endswith(".h5")
    }
    assert set(after) == {"codebook_indexes.000000.h5", "m.jsonl", "left_out.jsonl", "export.json"}


def test_a_killed_export_leaves_nothing_that_is_read(tmp_path):
    cut = cut_in(recording_of("r", 2.0), 0.0, 2.0, name="a")
    table, _ = make_coded_table(tmp_path / "table", [cut])
    manifest = write_manifest(tmp_path / "m.jsonl", [cut])
    IcefallTarget(open_location(str(tmp_path / "out")), [table], ["codebook_indexes"], [str(manifest)])
    (tmp_path / "out/.exporting/codebook_indexes.000000.h5").write_text("half")
    assert not [p for p in (tmp_path / "out").iterdir() if p.suffix in (".h5", ".jsonl")]
    to_icefall(tmp_path / "out", [table], [manifest])
    assert not (tmp_path / "out/_exporting").exists()
    assert not (tmp_path / "out/.exporting").exists()


def test_what_is_refused(tmp_path, monkeypatch):
    cut = cut_in(recording_of("r", 2.0), 0.0, 2.0, name="a")
    table, _ = make_coded_table(tmp_path / "table", [cut])
    other = write_manifest(tmp_path / "m.jsonl", [cut_in(recording_of("q", 2.0), 0.0, 2.0, name="a")])
    with pytest.raises(ExportError, match=r"none of 1 cuts has codes.*no codes of recording 'q'"):
        to_icefall(tmp_path / "out", [table], [other])
    assert not list((tmp_path / "out").iterdir()), "nothing is left of it"
    with pytest.raises(ValueError, match="no such file"):
        to_icefall(tmp_path / "out2", [table], [tmp_path / "none.jsonl"])
    with gzip.open(tmp_path / "s.jsonl.gz", "wt") as file:
        file.write(json.dumps(cut.supervisions or {"id": "x", "recording_id": "y"}) + "\n")
    with pytest.raises(ValueError, match="not a Lhotse cut"):
        to_icefall(tmp_path / "out3", [table], [tmp_path / "s.jsonl.gz"])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ExportError, match=r"pip install 'mvqkd\[icefall\]'"):
        to_icefall(tmp_path / "out4", [table], [other])
