"""Plan, fit and extract on real speech with a real teacher: a part of AN4 and the Whisper base encoder."""

import shutil
from pathlib import Path

import duckdb
import pytest
from tiny import make_run, run_tree

from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import plan_stage
from mvqkd.storage.table import IndexTable

pytestmark = [pytest.mark.integration, pytest.mark.shared]


@pytest.fixture(scope="module")
def an4_part(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every 16th training utterance, and every 20th of the test part."""
    source, root = shared / "corpora" / "an4", tmp_path_factory.mktemp("an4")
    header, *lines = (source / "transcripts.tsv").read_text().splitlines()
    kept = [line for n, line in enumerate(lines) if n % (16 if "\ttrain\t" in line else 20) == 0]
    (root / "transcripts.tsv").write_text("\n".join([header, *kept]) + "\n")
    for line in kept:
        utterance, split, *_ = line.split("\t")
        (root / "audio" / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "audio" / split / f"{utterance}.flac", root / "audio" / split)
    return root


def test_real_speech_becomes_a_table(shared: Path, an4_part: Path, tmp_path: Path) -> None:
    tree = run_tree(an4_part, shared / "teachers" / "whisper-base-encoder", tmp_path / "run")
    tree["teacher"]["layer"] = 3
    tree["quantizer"] = {
        "num_codebooks": 4,
        "codebook_size": 256,
        "anneal_rounds": 8,
    }
    tree["extract"] = {"shard_hours": 0.01, "batch_seconds": 30.0}
    run = make_run(tree, tmp_path)
    plan = plan_stage(run)
    assert plan["train_refused"] == 0
    assert 50 <= plan["train_cuts"] <= 70
    fit = fit_stage(run)
    assert fit["dim"] == 512
    assert fit["valid_rrl"] < 0.6
    summary = extract_stage(run)
    assert (summary["shards_failed"], summary["utterances_left_out"]) == (0, 0)
    table = IndexTable.open(run.table)
    assert table.verify() == plan["train_cuts"]
    assert (table.contract.layer, table.contract.frame_rate_hz) == (3, 50.0)
    rows = duckdb.sql(
        f"SELECT num_frames / (num_samples / 16000.0) AS rate, len(codes) = num_frames AS whole, rrl "
        f"FROM '{run.table.base_path}/*.parquet'"
    ).fetchall()
    assert all(49 < rate < 53 and whole and 0 < rrl < 1 for rate, whole, rrl in rows)
