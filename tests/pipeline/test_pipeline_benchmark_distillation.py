"""The benchmark of distillation: every system has a run file that is right, and figures are put together by speaker."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.distillation.cells import CELLS, run_file
from benchmarks.distillation.folds import NUM_FOLDS, write_folds
from benchmarks.distillation.results import Results, counterpart, markdown
from mvqkd.pipeline.run_file import load_config


@pytest.mark.parametrize("name", CELLS)
def test_each_system_has_a_run_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(run_file(name, teacher="t", layer=3, fold=str(tmp_path), root=str(tmp_path / "run")))
    )
    config = load_config(file)
    assert config.student_names() == [name]
    student, distill = config.student_settings(name)
    other = counterpart(name)
    assert (other is None) == (not distill.distils)
    if other is not None:
        # The one that it is measured against has the same student and trains as long.
        beside = dict(CELLS[other].student), {**CELLS[other].distill}
        assert beside[0] == dict(CELLS[name].student)
        assert beside[1].get("epochs") == CELLS[name].distill.get("epochs")
        assert distill.epochs >= 40 and student.num_layers == 6


def test_every_speaker_is_recognized_once(corpus_root: Path, tmp_path: Path) -> None:
    write_folds(str(corpus_root), tmp_path)
    lines = (corpus_root / "transcripts.tsv").read_text().splitlines()[1:]
    tested = []
    for fold in range(NUM_FOLDS):
        train, test = (
            [json.loads(line) for line in (tmp_path / f"fold-{fold}/{part}.jsonl").read_text().splitlines()]
            for part in ("train", "test")
        )
        speakers = [{cut["supervisions"][0]["speaker"] for cut in cuts} for cuts in (train, test)]
        assert not speakers[0] & speakers[1] and len(train) + len(test) == len(lines)
        tested += [cut["id"] for cut in test]
    assert sorted(tested) == sorted(line.split("\t")[0] for line in lines)


def test_figures_are_put_together_by_speaker(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    common = {"cpu_s": 20.0, "epochs": 2, "steps": 9, "wait_share": 0.01, "target_bytes_per_hour": 1000.0}
    for fold in (0, 1):
        results.add("none", fold, {"wer": 0.2, "speakers": {"a": [10, 50], "b": [10, 50]}, **common})
    results.add("mvq-8", 0, {"wer": 0.1, "speakers": {"a": [6, 50], "b": [4, 50]}, **common})
    again = Results(tmp_path / "results.json")
    assert again.has("none", 1) and not again.has("mvq-8", 1)
    figures = again.summary()["mvq-8"]
    assert (figures["wer"], figures["words"], figures["against"]) == (0.1, 100, "none")
    assert figures["reduction"] == pytest.approx(0.5)
    assert figures["reduction_interval"] == pytest.approx([0.4, 0.6])
    assert "| MVQ, 8 codebooks | 1 | 10.00% (8.0% to 12.0%) |" in markdown(again)
