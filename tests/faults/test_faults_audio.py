"""Audio that is damaged, or is not what was planned, among faults of the workers; the workers are the real ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from faults_rig import Faults
from tiny import objects

from mvqkd.pipeline.stages.plan import need_plan
from mvqkd.storage.failures import read_failures

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


def test_damaged_and_replaced_audio_cost_no_other_utterance(faults: Faults, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(faults.tree["corpus"]["root"], corpus)
    faults = faults.with_keys("corpus", root=str(corpus))
    need_plan(faults.run, "train")
    damaged, replaced = (corpus / f"audio/train/train-{number:03d}.flac" for number in (1, 9))
    damaged.write_bytes(damaged.read_bytes()[:3000])
    soundfile.write(replaced, np.zeros(40_000, dtype=np.float32), 16_000)
    mischief = faults.mischief(faults={0: ("kill",), 2: ("kill_after_put",)})
    summary = faults.extract(mischief, workers="real")
    assert (summary["shards_failed"], summary["utterances_left_out"]) == (0, 2)
    assert mischief.met("kill") == mischief.met("kill_after_put") == 1
    mischief.computed()
    failures = {failure.cut_id: failure for failure in read_failures(faults.run.table)}
    assert failures.keys() == {"train-001", "train-009"}
    assert "lasts 2.500 s, but" in failures["train-009"].message
    found, clean = objects(faults.run.table), faults.rig.undisturbed["real"]
    touched = {failure.shard for failure in failures.values()}
    others = {name for name in clean if name.removesuffix(".parquet") not in touched}
    assert len(others) == len(clean) - 2
    assert all(found[name] == clean[name] for name in others)
    # The same audio without the faults of the workers gives the same table.
    calm = faults.with_keys("table", path=str(tmp_path / "calm"))
    calm.extract(calm.mischief(), workers="real", cluster="none")
    assert found == objects(calm.run.table)
