"""The whole job, in this process, on a tiny corpus: its report, and that nothing is done twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import Done, copy_of, make_run

from mvqkd.pipeline.show.run_table import print_report
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage

pytestmark = pytest.mark.integration


def test_the_report_tells_what_a_newcomer_asks(done: Done, capsys: Any) -> None:
    report = json.loads((done[1] / "report.json").read_text())
    table = report["extract"]["table"]
    assert (report["plan"]["train_cuts"], table["rows"], table["failures"]) == (12, 12, 0)
    assert report["extract"]["speed"]["real_time_factor"] > 0
    assert 0 < report["fit"]["valid_rrl"] < 2
    for name in ("baseline", "mvqkd"):
        student = report["students"][name]
        assert student["score"]["wer"] >= 0
        assert student["score"]["utterances"] == 3
        assert student["curve"][-1]["step"] == student["steps"] > 0
        lines = (done[1] / "students" / name / "errors.jsonl").read_text().splitlines()
        assert {json.loads(line)["cut_id"] for line in lines} == {"test-000", "test-001", "test-002"}
    assert report["students"]["baseline"]["curve"][-1]["codebook_loss"] is None
    assert report["students"]["mvqkd"]["curve"][-1]["codebook_loss"] > 0
    print_report(report)
    shown = capsys.readouterr().out
    for words in (
        "real-time factor",
        "RRL",
        "Bytes per hour",
        "float16 embeddings",
        "WER with MVQ-KD",
        str(done[1]),
    ):
        assert words in shown.replace("\n", "")
    assert (done[1] / "curves.png").stat().st_size > 5000


def test_every_stage_again_does_nothing(done: Done, tmp_path: Path) -> None:
    run = make_run(done[0], tmp_path)
    reports = {"report.json", "errors.jsonl", "extracted.json"}
    watched = [
        p for p in done[1].rglob("*") if p.is_file() and p.name not in reports and p.parent.name != "reports"
    ]
    before = {p: p.stat().st_mtime_ns for p in watched}
    report = run.reports.whole()
    assert fit_stage(run)["id"] == report["fit"]["id"]
    assert extract_stage(run)["shards_extracted"] == 0
    distill_stage(run)
    decode_stage(run)
    assert {p: p.stat().st_mtime_ns for p in watched} == before
    again = run.reports.whole()
    assert again["extract"]["speed"] == report["extract"]["speed"]
    assert again["extract"]["table"] == report["extract"]["table"]
    assert again["students"] == report["students"]


def test_a_reduction_is_of_two_students_that_differ_in_the_codes_only(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table", "students", "reports")
    report = make_run(tree, tmp_path).reports.whole()
    wer = {name: report["students"][name]["score"]["wer"] for name in ("baseline", "mvqkd")}
    assert report["relative_wer_reduction"] == pytest.approx(1 - wer["mvqkd"] / wer["baseline"])
    run = make_run(tree, tmp_path, "distill.epochs=1")
    distill_stage(run)
    assert "score" not in run.reports.whole()["students"]["mvqkd"]  # it was of another training
    decode_stage(run)
    assert run.reports.whole()["relative_wer_reduction"] is None
