"""The decode stage, in this process: which students it refuses, and what is counted."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import Done, copy_of, make_run, run_tree, write_corpus

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.plan import plan_stage

pytestmark = pytest.mark.integration


def test_a_student_of_other_settings_is_refused(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "students"), tmp_path, "distill.epochs=1")
    with pytest.raises(StageError, match=r"trained with distill\.epochs \d+, now 1; `mvqkd distill`"):
        decode_stage(run)


def test_settings_that_change_the_speed_only_are_not_asked_about(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "students"), tmp_path, "distill.cache_mb=1")
    assert decode_stage(run)["utterances"] == 3


def test_a_test_part_without_audio_leaves_a_list(done: Done, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    tree = {
        **copy_of(done, tmp_path, "quantizer", "table", "students"),
        "corpus": {"root": str(tmp_path / "corpus")},
    }
    run = make_run(tree, tmp_path)
    plan_stage(run)
    shutil.rmtree(tmp_path / "corpus/audio/test")
    errors = tmp_path / "run/students/mvqkd/errors.jsonl"
    with pytest.raises(StageError, match=str(errors)):
        decode_stage(run)
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [line["cut_id"] for line in lines] == ["test-000", "test-001", "test-002"]
    assert all("no such audio file" in line["error"] for line in lines)


def test_utterances_that_the_plan_refused_are_counted_and_named(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "students")
    lengths = [2 * 0.375, 3 * 0.375, 4 * 0.375]  # of the tiny test part, in seconds
    run = make_run(tree, tmp_path, "corpus.max_duration_s=1.2")
    summary = decode_stage(run)
    assert (summary["utterances"], summary["left_out"]) == (2, 1)
    assert summary["hours"] == pytest.approx(sum(lengths[:2]) / 3600)
    assert summary["left_out_hours"] == pytest.approx(lengths[2] / 3600)
    lines = [
        json.loads(line) for line in (tmp_path / "run/students/mvqkd/errors.jsonl").read_text().splitlines()
    ]
    assert [line["cut_id"] for line in lines if "max_duration_s" in line.get("error", "")] == ["test-002"]


def test_before_its_time_it_says_what_to_run(corpus_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="mvqkd distill"):
        decode_stage(make_run(run_tree(corpus_root, teacher_path, tmp_path / "run"), tmp_path))
