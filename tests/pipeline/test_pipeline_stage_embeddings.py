"""Runs whose tables hold the teacher's embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_server import S3Server
from tiny import make_run, objects, on_s3, write_run_file
from typer.testing import CliRunner

from mvqkd.models.teachers import load_teacher
from mvqkd.models.teachers.errors import TeacherUnreachableError
from mvqkd.pipeline.cli import app
from mvqkd.pipeline.errors import ConfigError, StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.preflight import print_plan
from mvqkd.pipeline.show.run_table import _corpus_rows, _size_rows
from mvqkd.pipeline.stages import extract_table
from mvqkd.pipeline.stages.calibrate import calibrate_stage
from mvqkd.pipeline.stages.certify import certify_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import plan_stage
from mvqkd.pipeline.stages.status import run_status
from mvqkd.storage.errors import ContractError
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import cut_from_json
from mvqkd.workers.teacher_record import load_teacher_record

DIM = 32  # of the tests' teacher
EMBEDDINGS = {"table": {"target": "embeddings"}}


@pytest.fixture
def run(tree: dict[str, Any], tmp_path: Path) -> Run:
    return make_run(tree | EMBEDDINGS, tmp_path)


def test_a_table_of_embeddings_from_plan_to_status(run: Run, corpus_root: Path, teacher_path: Path) -> None:
    planned = plan_stage(run)
    assert planned["target"] == "embeddings" and "more_index_bytes" not in planned
    assert planned["index_bytes"] == round(planned["train_hours"] * 3600 * 50 * 2 * DIM)
    with pytest.raises(StageError, match=r"no such record of a teacher; `mvqkd fit` makes it"):
        extract_stage(run)
    fitted = fit_stage(run)
    assert (fitted["target"], fitted["dim"]) == ("embeddings", DIM) and not run.quantizer.list()
    assert load_teacher_record(run.teacher).batch_seconds is not None
    before = objects(run.teacher)
    assert fit_stage(run) == fitted and objects(run.teacher) == before

    summary = extract_stage(run)
    table = IndexTable.open(run.table)
    assert (table.contract.payload, table.contract.dim) == ("embeddings", DIM)
    assert summary["shards_extracted"] == len(table.committed()) == 4 and table.verify() == 12
    figures = summary["table"]
    assert figures["indexes"] == 0 and figures["mean_rrl"] is None
    assert 0.3 < figures["float16_times_as_much"] < 1.2
    assert run_status(run)["state"] == "done"
    files = objects(run.table)
    again = extract_stage(run)
    assert (again["shards_extracted"], again["shards_found_done"]) == (0, 4) and again["table"] == figures
    assert objects(run.table) == files
    report = run.reports.whole()
    rows = dict([*_corpus_rows(report), *_size_rows(report["extract"]["table"])])
    assert rows["Quantizer"] == "none: 32 numbers a frame, as float16"
    assert "bytes per frame" in rows["Bytes per hour"]

    teacher, loader = load_teacher(str(teacher_path)), AudioLoader(16_000, root=str(corpus_root))
    for row in table.iter_rows():
        (x_TD,) = teacher.encode([loader(cut_from_json(row["cut"]))])
        assert row["embeddings"].shape == (row["num_frames"], DIM)
        # What else was in the batch shows in the last digits of float32, below those of float16.
        np.testing.assert_allclose(row["embeddings"], x_TD.numpy().astype(np.float16), rtol=2e-3, atol=1e-4)


def test_beside_a_table_of_codes(tree: dict[str, Any], tmp_path: Path) -> None:
    """Each table is what a run of its own makes, and what lies where."""
    more = {"tables": {"deep": {"target": "embeddings"}, "low": {"target": "embeddings", "layer": 1}}}
    run = make_run(tree | more, tmp_path)
    planned = plan_stage(run)
    assert planned["more_index_bytes"] == dict.fromkeys(("deep", "low"), planned["index_bytes"] // 2 * 64)
    fitted = fit_stage(run)
    assert fitted["num_codebooks"] == 2 and fitted["tables"]["low"]["teacher"]["layer"] == 1
    summary = extract_stage(run)
    assert [summary["tables"][name]["shards_extracted"] for name in ("deep", "low")] == [4, 4]
    for each, changed in zip(run.more_tables(), ([], ["teacher.layer=1"]), strict=True):
        out = tmp_path / str(each.table_name)
        alone = make_run(tree | EMBEDDINGS, tmp_path, f"storage.root={out}", *changed)
        fit_stage(alone)
        extract_stage(alone)
        assert objects(alone.table) == objects(each.table)
        assert each.table.url == run.root.join("tables", str(each.table_name), "table").url
    # The other way round: the run's own table of embeddings, and one of codes beside it.
    other = make_run(
        tree | EMBEDDINGS | {"tables": {"codes": {"target": "codes"}}},
        tmp_path,
        f"storage.root={tmp_path / 'o'}",
    )
    fit_stage(other)
    extract_stage(other)
    assert objects(other.more_tables()[0].table) == objects(run.table)


def test_what_needs_codes_says_so(run: Run, tree: dict[str, Any], tmp_path: Path) -> None:
    fit_stage(run)
    extract_stage(run)
    with pytest.raises(StageError, match=r"table\.target is embeddings, and certify counts codes"):
        certify_stage(run)
    codes = make_run(tree, tmp_path)
    fit_stage(codes)
    with pytest.raises(
        ContractError, match=r"table\.json: this table holds embeddings \(32 numbers a frame\)"
    ):
        extract_stage(codes)
    found = calibrate_stage(run, 1.0)
    assert found["quality"] is None and found["hours_per_worker_hour"] > 0


def test_a_student_learns_from_embeddings(run: Run) -> None:
    fit_stage(run)
    extract_stage(run)
    for distance, scale in (("l1", 0.01), ("l2", 0.01), ("cosine", 1.0)):
        changed = {"distance": distance, "loss_scale": scale, "epochs": 30, "lr": 5e-3}
        distill = run.config.distill.model_copy(update=changed)
        of_distance = Run(run.config.model_copy(update={"distill": distill}))
        distill_stage(of_distance)
        losses = [p["head_losses"]["codebook"] for p in of_distance.reports.read("distill", "mvqkd")["curve"]]
        assert losses[-1] < losses[0], distance


def test_other_settings_and_another_teacher(run: Run, tree: dict[str, Any], tmp_path: Path) -> None:
    fit_stage(run)
    other = make_run(tree | EMBEDDINGS, tmp_path, "teacher.layer=1")
    for stage in (fit_stage, extract_stage):
        with pytest.raises(
            StageError, match=r"teacher\.json: of other settings of teacher: layer None, now 1"
        ):
            stage(other)
    record = load_teacher_record(run.teacher)
    content = json.loads(run.teacher.read_bytes("teacher.json"))
    content["teacher"]["fingerprint"] = "0" * 16
    run.teacher.replace("teacher.json", json.dumps(content).encode())
    with pytest.raises(
        Exception, match=f"fingerprint is {record.teacher['fingerprint']}, but the table .* is of 0000"
    ):
        extract_stage(run)
    run.teacher.replace("teacher.json", b'{"teacher": {}}')
    with pytest.raises(StageError, match=r"teacher\.json: not the record of a teacher"):
        extract_stage(run)


def test_a_teacher_that_cannot_be_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> int:
        raise TeacherUnreachableError("no connection")

    monkeypatch.setattr("mvqkd.pipeline.stages.plan.teacher_dim", unreachable)
    summary = plan_stage(run)
    assert summary["index_bytes"] is None
    print_plan(summary)
    assert "not known until the teacher can be asked" in " ".join(capsys.readouterr().out.split())


def test_shards_that_are_too_large(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_stage(run)
    monkeypatch.setattr(extract_table, "MOST_SHARD_BYTES", 2000)
    with pytest.raises(
        StageError, match=r"GB of embeddings, more than .* set extract.shard_hours to \S+ or less"
    ):
        extract_stage(run)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"table": {"target": "features"}}, r"table\.target"),
        ({"tables": {"x": {"target": "embeddings", "search": "full"}}}, "no quantizer; remove"),
        (
            {"tables": {"x": {"target": "embeddings", "quantizer": {"num_codebooks": 4}}}},
            "no quantizer; remove",
        ),
    ],
)
def test_what_cannot_be(tree: dict[str, Any], tmp_path: Path, more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_run(tree | more, tmp_path)


def test_the_commands(run: Run, tree: dict[str, Any], tmp_path: Path) -> None:
    path = str(write_run_file(tree | EMBEDDINGS, tmp_path))
    for command in ("plan", "fit", "extract", "status"):
        done = CliRunner().invoke(app, [command, path], env={"COLUMNS": "200"})
        assert done.exit_code == 0, (command, done.output)
        if command == "plan":
            assert "kB, embeddings alone" in done.output
    done = CliRunner().invoke(app, ["inspect", run.table.url, "--verify", "--json"])
    figures = json.loads(done.output.splitlines()[-1])
    assert figures["contract"]["payload"] == "embeddings" and figures["bytes_per_index"] is None
    assert figures["float16_bytes_per_hour"] > 0
    done = CliRunner().invoke(app, ["certify", path])
    assert done.exit_code == 2


@pytest.mark.integration
def test_on_s3(tree: dict[str, Any], tmp_path: Path, s3_environment: S3Server) -> None:
    there = on_s3(tree | EMBEDDINGS, s3_environment, "embeddings-run")
    run = make_run(there | {"cluster": {"address": "none", "num_cpus": 2}}, tmp_path)
    fit_stage(run)
    assert extract_stage(run)["shards_extracted"] == 4
    here = make_run(tree | EMBEDDINGS, tmp_path)
    fit_stage(here)
    extract_stage(here)
    assert objects(run.table) == objects(here.table)
    assert extract_stage(run)["shards_found_done"] == 4
