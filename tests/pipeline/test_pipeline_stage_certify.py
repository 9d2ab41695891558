"""`mvqkd certify`: the certificate lies beside the table and in the report."""

import json
from pathlib import Path

import pytest
from tiny import Done, copy_of, make_run

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.stages.certify import certify_stage, show_certificate
from mvqkd.storage.artifacts import read_json


def test_a_certificate_is_written(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table"), tmp_path)
    before = run.table.list()
    summary = certify_stage(run, 0.01)
    assert summary["certified"] and summary["dtype"] == "float32" and summary["search"] == "fast"
    assert read_json(run.table, "certificate.json") == json.loads(json.dumps(summary))
    assert run.reports.read("certify")["quantizer_id"] == run.reports.whole()["certify"]["quantizer_id"]
    assert set(run.table.list()) - set(before) == {"certificate.json"}
    show_certificate(summary)
    shown = capsys.readouterr().out
    assert "batched" in shown and shown.rstrip().endswith("\ncertified")


def test_before_its_time(done: Done, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="mvqkd fit"):
        certify_stage(make_run(copy_of(done, tmp_path, "plan"), tmp_path))
