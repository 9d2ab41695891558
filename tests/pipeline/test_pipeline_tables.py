"""`mvqkd export`, `mvqkd import` and `mvqkd sql` as commands, on the table of a finished run."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet
from tiny import Done
from typer.testing import CliRunner, Result

from mvqkd.pipeline.cli import app
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def result_of(*arguments: object) -> dict:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def table(done: Done) -> Path:
    return done[1] / "table"


def test_a_finished_runs_table_out_and_in_again(done: Done, table, corpus_root, tmp_path):
    codes = {row["cut_id"]: row["codes"] for row in IndexTable.open(open_location(str(table))).iter_rows()}
    out = tmp_path / "icefall"
    report = result_of("export", table, "--to", "icefall", "--out", out, "--root", corpus_root)
    assert report["exported"] == report["cuts"] == len(codes)
    cuts = list(CutSet.from_file(out / "cuts.jsonl.gz"))
    for cut in cuts:
        assert np.array_equal(cut.load_custom("codebook_indexes"), codes[cut.id])
        assert cut.load_audio().shape[1] == cut.num_samples
    # The quantizer's own folder says all that there is to know.
    report = result_of(
        "import", out / "cuts.jsonl.gz", "--out", tmp_path / "again", "--quantizer", done[1] / "quantizer",
        "--search", "fast",
    )  # fmt: skip
    assert report["rows"] == len(codes)
    again = IndexTable.open(open_location(str(tmp_path / "again")))
    assert again.contract == IndexTable.open(open_location(str(table))).contract
    assert all(np.array_equal(row["codes"], codes[row["cut_id"]]) for row in again.iter_rows())
    assert result_of("inspect", tmp_path / "again", "--verify")["mean_rrl"] is None
    shar = result_of("export", table, "--to", "lhotse-shar", "--out", tmp_path / "shar", "--audio", "flac",
                     "--root", corpus_root)  # fmt: skip
    assert shar["exported"] == len(codes)
    for cut in CutSet.from_shar(in_dir=tmp_path / "shar/shar"):
        assert np.array_equal(cut.load_custom("codebook_indexes"), codes[cut.id])
        assert cut.load_audio().shape[1] == cut.num_samples


def test_what_an_export_says(table, tmp_path):
    result = call("export", table, "--to", "icefall", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "exported: 12" in result.output and "left_out.stale: 0" in result.output
    assert "note: pruned_transducer_stateless6 takes 8 codebooks at 50 Hz" in result.output.replace("\n", " ")
    for arguments, problem in (
        (("--to", "icefall", "--out", tmp_path / "out"), "--force"),
        (("--to", "kaldi", "--out", tmp_path / "new"), "icefall or lhotse-shar"),
        (("--to", "icefall", "--audio", "flac", "--out", tmp_path / "new"), "--audio"),
        (("--to", "icefall", "--out", "s3://bucket/x"), "local folder"),
        (("--to", "lhotse-shar", "--audio", "mp9", "--out", tmp_path / "new"), "flac or wav"),
        (("--to", "icefall", "--out", tmp_path / "new", "--set", "corpus.root=x"), "storage."),
    ):
        result = call("export", table, *arguments)
        assert result.exit_code == 2 and problem in result.output.replace("\n", " "), result.output


def test_queries(table):
    result = call("sql", table, "--query", "SELECT cuts, hours > 0 AS some FROM totals")
    assert result.exit_code == 0, result.output
    assert list(csv.reader(io.StringIO(result.stdout))) == [["cuts", "some"], ["12", "True"]]
    found = result_of("sql", table, table, "--query", "SELECT codebook, distance, NULL AS n FROM drift")
    assert found == {"columns": ["codebook", "distance", "n"], "rows": [[0, 0.0, None], [1, 0.0, None]]}
    found = result_of("sql", table, "-q", "SELECT codes FROM utterances ORDER BY cut_id LIMIT 1")
    assert np.array(found["rows"][0][0]).shape[1] == 2
    bad = call("sql", table, "-q", "FROM nothing")
    assert bad.exit_code == 2 and "mvqkd: " in bad.output and "there are" in bad.output
    assert call("sql", table, "--json").exit_code == 2


def test_queries_from_standard_input(table):
    text = "SELECT 1 AS a;\nSELECT cuts\n FROM totals;\nSELECT 'last' AS b"
    result = CliRunner().invoke(app, ["sql", str(table)], input=text)
    assert result.exit_code == 0, result.output
    assert result.stdout == "a\n1\ncuts\n12\nb\nlast\n"
    result = CliRunner().invoke(app, ["sql", str(table)], input="SELEC;\nSELECT 1 AS a;")
    assert result.exit_code == 2 and result.stdout == ""


def test_a_query_of_a_damaged_table(table, tmp_path):
    shutil.copytree(table, tmp_path / "table")
    shard = next((tmp_path / "table").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-30])
    result = call("sql", tmp_path / "table", "-q", "FROM totals")
    assert result.exit_code == 2 and shard.name in result.output
