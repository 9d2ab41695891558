"""The run files for LibriSpeech plan, on manifests as Lhotse writes them."""

import json
import math
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.plan import plan_stage

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def librispeech_cut(number: int) -> MonoCut:
    name = f"19-198-{number:04d}"
    recording = Recording(
        id=name,
        sources=[AudioSource("file", [0], f"LibriSpeech/train-clean-100/19/198/{name}.flac")],
        sampling_rate=16_000,
        num_samples=16_000 * 12,
        duration=12.0,
    )
    supervision = SupervisionSegment(
        id=name, recording_id=name, start=0.0, duration=12.0, text="NORTHANGER ABBEY", speaker="19"
    )
    return MonoCut(
        id=f"{name}-0", start=0.0, duration=12.0, channel=0, recording=recording, supervisions=[supervision]
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("librispeech-*.yaml")), ids=lambda p: p.stem)
def test_librispeech_files_plan(path: Path, tmp_path: Path) -> None:
    corpus = load_config(path).corpus
    assert corpus.test is not None
    for part, count in ((corpus.train, 2000), (corpus.test, 10)):
        CutSet.from_cuts(librispeech_cut(number) for number in range(count)).to_file(tmp_path / part)
    places = [f"corpus.root={tmp_path}", f"storage.root={tmp_path}/run", "cluster.address=local"]
    summary = plan_stage(Run(load_config(path, places)))
    assert (summary["train_cuts"], summary["test_cuts"]) == (2000, 10)
    assert summary["shards"] == math.ceil(2000 * 12 / 3600 / summary["shard_hours"])
    # 8 bytes 50 times a second.
    assert summary["index_bytes"] == 2000 * 12 * 50 * 8
    plan = json.loads((tmp_path / "run/plan/train/plan.json").read_text())
    assert plan["num_refused"] == 0
