"""The table of figures that a run ends with: intervals, pairs, and reports from before there were any."""

import io
from pathlib import Path
from typing import Any

import pytest
from compare_runs import DELAY, FakeRun, curve, misheard, sentences
from rich.console import Console

from mvqkd.pipeline.show import run_table
from mvqkd.pipeline.stages.scored import against_others, read_errors

SAID = sentences(speakers=12, each=5)


def decoded(fake: FakeRun, rates: dict[str, float]) -> None:
    """As the stages do it, one student after the other."""
    for student, rate in rates.items():
        fake.trained(student, curve(100, final=3.0, with_codes=True, wer=None))
        fake.decoded(student, misheard(SAID, rate, seed=3))
        report = fake.run.reports.read("decode", student)
        mine, _ = read_errors(fake.run, student, report)
        against = against_others(fake.run, student, mine)
        fake.run.reports.write("decode", {**report, "against": against}, student)


def printed(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """What stands in the table, those rows left out that are of other stages."""
    out = io.StringIO()
    monkeypatch.setattr(run_table, "_corpus_rows", lambda report: ())
    monkeypatch.setattr(run_table, "_size_rows", lambda table: ())
    monkeypatch.setattr(run_table, "Console", lambda **_: Console(file=out, width=400, highlight=False))
    run_table.print_report({"extract": {"table": {}, "table_url": "table"}, **report})
    return out.getvalue()


def test_an_error_rate_stands_with_its_interval_and_its_kinds(tmp_path: Path, monkeypatch: Any) -> None:
    fake = FakeRun(tmp_path, "run", {"baseline": {"distill": {"loss_scale": 0.0}}, "mvqkd": {}})
    decoded(fake, {"baseline": 0.25, "mvqkd": 0.08})
    report = fake.run.reports.whole()
    score = report["students"]["mvqkd"]["score"]
    shown = printed(report, monkeypatch)
    assert f"{score['wer']:.2%} (95% interval {score['wer_low']:.2%} to {score['wer_high']:.2%}) of" in shown
    assert f"{score['insertions']} insertions, {score['deletions']} deletions" in shown
    figures = score["against"]["baseline"]
    assert (
        f"{report['relative_wer_reduction']:.1%} (95% interval {figures['relative_low']:.1%} to "
        f"{figures['relative_high']:.1%}; better in 100.0% of draws of 12 speakers)"
    ) in shown
    assert shown.count("Relative reduction") == 1 and "mvqkd against" not in shown


def test_the_delay_of_a_streaming_student(tmp_path: Path, monkeypatch: Any) -> None:
    fake = FakeRun(tmp_path, "run", {"baseline": {"distill": {"loss_scale": 0.0}}})
    decoded(fake, {"baseline": 0.25})
    report = fake.run.reports.whole()
    score = report["students"]["baseline"]["score"]
    score["delay"] = DELAY
    assert (
        "0.62 s in the middle, 0.80 s for nine of ten (300 words, after their end, in chunks of 0.1 s); 0.81 s by its"
    ) in printed(report, monkeypatch)
    score["delay"] = {**DELAY, "words": None}
    assert "0.49 s in the middle, 0.70 s for nine of ten (900 units, after their" in printed(
        report, monkeypatch
    )
    score["delay"] = {**DELAY, "words": None, "waits": None}
    assert "nothing was heard in 100 utterances; 0.81 s" in printed(report, monkeypatch)


def test_a_pair_is_the_same_in_whatever_order_it_was_decoded(tmp_path: Path, monkeypatch: Any) -> None:
    shown = []
    for order in (("baseline", "mvqkd"), ("mvqkd", "baseline")):
        fake = FakeRun(tmp_path, "-".join(order), {"baseline": {"distill": {"loss_scale": 0.0}}, "mvqkd": {}})
        decoded(fake, {student: {"baseline": 0.25, "mvqkd": 0.08}[student] for student in order})
        report = fake.run.reports.whole()
        assert ("baseline" in report["students"]["mvqkd"]["score"]["against"]) == (order[1] == "mvqkd")
        shown += [line for line in printed(report, monkeypatch).splitlines() if "Relative reduction" in line]
    assert len(shown) == 2 and shown[0] == shown[1] and "interval" in shown[0]


def test_every_student_stands_against_the_first(tmp_path: Path, monkeypatch: Any) -> None:
    fake = FakeRun(tmp_path, "run", {"small": {}, "large": {}, "other": {}})
    decoded(fake, {"small": 0.2, "large": 0.1, "other": 0.2})
    shown = printed(fake.run.reports.whole(), monkeypatch)
    assert "large against small" in shown and "other against small" in shown and "small against" not in shown
    assert "Relative reduction" not in shown  # which is of the student without codes alone


def test_a_report_of_an_earlier_version(monkeypatch: Any) -> None:
    score = {"wer": 0.2, "cer": 0.1, "words": 50, "utterances": 5, "left_out": 0, "digest": "d"}
    students = {
        "baseline": {"digest": "d", "pair": "p", "score": score},
        "mvqkd": {"digest": "d", "pair": "p", "score": {**score, "wer": 0.1}},
    }
    shown = printed({"students": students, "relative_wer_reduction": 0.5}, monkeypatch)
    assert "10.00% of 50 words (CER 10.00%), 5 utterances" in shown
    assert "Relative reduction" in shown and "50.0%" in shown and "interval" not in shown
