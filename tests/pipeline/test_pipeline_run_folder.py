"""Reports of stages: one file each, and one report put together from them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mvqkd.pipeline.run_folder import Reports
from mvqkd.storage.artifacts import write_json
from mvqkd.storage.location import open_location


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(root=open_location(str(tmp_path)))


def student(wer: float | None = None, *, digest: str = "d", pair: str = "p") -> dict[str, Any]:
    return {"digest": digest, "pair": pair} | ({} if wer is None else {"wer": wer})


def test_two_stages_side_by_side_lose_nothing_of_each_other(reports: Reports, tmp_path: Path) -> None:
    """As two `mvqkd distill` of one run: both report at the same moment, many times over."""

    def train(name: str) -> None:
        for step in range(40):
            reports.write("distill", {**student(), "step": step}, name)
            assert reports.whole()["students"][name]["step"] == step, "what was reported has gone"

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(train, ("a", "b", "c")))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: report["students"][name]["step"] for name in "abc"} == dict.fromkeys("abc", 39)


def test_a_score_is_of_one_training_only(reports: Reports) -> None:
    for name, wer in (("baseline", 0.4), ("mvqkd", 0.3)):
        reports.write("distill", student(digest=name), name)
        reports.write("decode", {"wer": wer, "digest": name}, name)
    assert reports.whole()["relative_wer_reduction"] == pytest.approx(0.25)
    reports.write("distill", student(digest="of another seed"), "mvqkd")
    assert "score" not in reports.whole()["students"]["mvqkd"]
    assert reports.whole()["relative_wer_reduction"] is None


def test_students_that_differ_in_more_than_the_codes_are_not_compared(reports: Reports) -> None:
    for name, wer in (("baseline", 0.4), ("mvqkd", 0.3)):
        reports.write("distill", student(pair=name), name)
        reports.write("decode", {"wer": wer, "digest": "d"}, name)
    assert reports.whole()["relative_wer_reduction"] is None


def test_a_report_of_an_earlier_version_is_gone_on_with(reports: Reports) -> None:
    old = {"plan": {"shards": 3}, "students": {"mvqkd": {"digest": "d", "score": {"wer": 0.3}}}}
    write_json(reports.root, "report.json", old)
    reports.write("fit", {"id": "abc"})
    assert reports.whole() == {**old, "fit": {"id": "abc"}, "relative_wer_reduction": None}
