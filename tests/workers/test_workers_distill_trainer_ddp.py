"""Two training processes: a rank with nothing to train on does not stop the other."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distill_fakes import SETTINGS, make_data, make_model
from torch.nn.parallel import DistributedDataParallel

from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.trainer import StudentTrainer


def train(rank: int, table: IndexTable, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch_seconds": 0.6})
    trainer = StudentTrainer(
        make_model(settings, table),
        make_data(table, settings, rank=rank, world_size=2),
        settings,
        device=torch.device("cpu"),
        wrap=DistributedDataParallel,
    )
    trainer.run(lambda progress, state: None)
    parameters = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    torch.save({"parameters": parameters, "left_out": list(trainer.left_out)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.integration
def test_rank_with_a_batch_of_bad_audio(make_table: Callable[..., IndexTable], tmp_path: Path) -> None:
    table = make_table([0.5] * 8)
    (tmp_path / "audio/u003.wav").unlink()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=train, args=(rank, table, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=200)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive and [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert sorted(first["left_out"] + second["left_out"]) == ["u003"]
    start = dict(make_model(SETTINGS, table).named_parameters())
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name
    assert any(not torch.equal(parameter, start[name]) for name, parameter in first["parameters"].items())
