"""The fit stage, in this process: what it shows, and which quantizers it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
from tiny import Done, copy_of, make_run, run_tree

from mvqkd.pipeline.cluster import pool
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.show import progress
from mvqkd.pipeline.stages import fit
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.storage.errors import ContractError

pytestmark = pytest.mark.integration


def test_a_fit_that_takes_longer_than_thought_says_so(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.0)
    shown = fit._Bars.update
    longer = ({"stage": "fit", "done": n, "total": n + 1} for n in range(1, 1000))
    monkeypatch.setattr(fit._Bars, "update", lambda self, notes: shown(self, [next(longer) for _ in notes]))
    fit_stage(make_run(tree, tmp_path))
    rounds = re.findall(r"fit: fit: (\d+)/(\d+) rounds", capsys.readouterr().err)
    assert len(rounds) > 1
    assert all(int(total) == int(number) + 1 for number, total in rounds)


def test_settings_that_do_not_fit_the_stored_quantizer(done: Done, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="other settings of quantizer: num_codebooks 2, now 4"):
        fit_stage(make_run(done[0], tmp_path, "quantizer.num_codebooks=4"))


def test_codes_of_different_quantizers_do_not_mix(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "table"), tmp_path, "quantizer.seed=7")
    fit_stage(run)
    with pytest.raises(ContractError, match="quantizer_id"):
        extract_stage(run)


def test_a_worker_that_asks_for_more_than_there_is(
    corpus_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    run = make_run(
        run_tree(corpus_root, teacher_path, tmp_path / "run"), tmp_path, "extract.gpus_per_actor=1.0"
    )
    with pytest.raises(ValueError, match=r"extract\.gpus_per_actor: a worker wants"):
        fit_stage(run)
