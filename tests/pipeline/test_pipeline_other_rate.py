"""A teacher of 8 kHz from plan to word error rate: teacher and student each get audio at their own rate."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import make_run, run_tree

from mvqkd.pipeline.run_all import run_all
from mvqkd.pipeline.stages.plan import plan_stage
from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ContractError
from mvqkd.storage.table import IndexTable
from mvqkd.workers.embed import EmbedderSettings
from mvqkd.workers.extract import ExtractSettings, TableSettings
from mvqkd.workers.plan import read_plan

pytestmark = pytest.mark.integration


@pytest.fixture
def telephone_teacher(teacher_path: Path, tmp_path: Path) -> Path:
    """The tiny teacher, told to take 8 kHz: a frame every 40 ms."""
    path = tmp_path / "telephone"
    shutil.copytree(teacher_path, path)
    settings = path / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "sampling_rate": 8000}))
    return path


def test_from_plan_to_word_error_rate(corpus_root: Path, telephone_teacher: Path, tmp_path: Path) -> None:
    tree = run_tree(corpus_root, telephone_teacher, tmp_path / "run")
    run = make_run(tree, tmp_path)
    report = run_all(run)
    assert report["plan"]["train_refused"] == 0  # 16 kHz is more than this teacher takes
    table = IndexTable.open(run.table)
    assert (table.contract.sample_rate_hz, table.contract.frame_rate_hz) == (8000, 25.0)
    for row in table.iter_rows():
        assert row["num_samples"] == round(row["duration"] * 8000)
        assert row["num_frames"] == (row["num_samples"] - 400) // 320 + 1
    for name in ("baseline", "mvqkd"):
        student = report["students"][name]
        assert (student["left_out"], student["score"]["utterances"], student["score"]["left_out"]) == (
            0,
            3,
            0,
        )
    record = json.loads((tmp_path / "run/students/mvqkd/student.json").read_text())
    assert record["sample_rate_hz"] == 16_000


def test_a_plan_for_a_teacher_of_another_rate_is_refused(
    corpus_root: Path, teacher_path: Path, telephone_teacher: Path, tmp_path: Path
) -> None:
    """As where the teacher was out of reach when the corpus was planned."""
    run = make_run(run_tree(corpus_root, teacher_path, tmp_path / "run"), tmp_path)
    plan_stage(run)
    plan = read_plan(run.plan("train"))
    assert plan is not None
    assert plan.settings["sample_rate_hz"] == 16_000
    contract = TableContract(
        teacher_fingerprint="0" * 16,
        teacher_name="telephone",
        layer=1,
        quantizer_id="00000000",
        num_codebooks=2,
        codebook_size=16,
        frame_rate_hz=50.0,
        frame_offset_s=0.0125,
        sample_rate_hz=8_000,
    )
    table = IndexTable.create(run.table, contract)
    settings = ExtractSettings(
        embedder=EmbedderSettings(
            teacher=make_run(
                run_tree(corpus_root, telephone_teacher, tmp_path / "run"), tmp_path
            ).config.teacher,
            root=str(corpus_root),
            options={},
            batch_seconds=30.0,
            decode_threads=1,
            compute_threads=1,
        ),
        tables=(TableSettings(table=table, quantizer=run.quantizer),),
        plan=run.plan("train"),
        max_unreadable=0.2,
    )
    with pytest.raises(ContractError, match=r"planned for a teacher of 16000 Hz, but it takes 8000 Hz"):
        settings.build()
