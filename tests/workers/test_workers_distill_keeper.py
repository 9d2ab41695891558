"""Which weights are kept, two workers as one that accumulates, and what a training is stopped by."""

import io
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_fakes import LENGTHS, SETTINGS, UNITS, make_data, make_model, make_trainer
from torch.nn.parallel import DistributedDataParallel

from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.distill.average import WeightAverage
from mvqkd.workers.distill.data import DataState
from mvqkd.workers.distill.examples import ExampleMaker
from mvqkd.workers.distill.held_out import HeldOut
from mvqkd.workers.distill.meter import Meter, Progress
from mvqkd.workers.distill.rows import Source, scan_table
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.trainer import StudentTrainer

MakeTable = Callable[..., IndexTable]


def with_held_out(table: IndexTable, settings: DistillConfig) -> StudentTrainer:
    model = make_model(settings, table)
    scan = scan_table(table, valid_hours=settings.valid_hours, seed=settings.seed)
    sources = [Source(table=table, shards=sorted(table.committed()))]
    loaders, rate_hz = [AudioLoader(16_000)], table.contract.sample_rate_hz
    make = ExampleMaker(model.student, UNITS, {}, loaders=loaders, table_rate_hz=rate_hz)
    held_out = HeldOut(scan.valid, sources, make, UNITS, batch_seconds=2.0, threads=1)
    return StudentTrainer(
        model, make_data(table, settings), settings, device=torch.device("cpu"), held_out=held_out
    )


def test_held_out_speakers_are_not_trained_on(make_table: MakeTable) -> None:
    table = make_table(LENGTHS * 2)
    rows = {(row["cut_id"]): row for row in table.iter_rows()}
    scan = scan_table(table, valid_hours=1e-4, seed=3)
    names = [sorted(table.committed()), list(rows.values())]
    assert len(scan.choice.held_out) == 1 and scan.rows["valid"] == len(scan.valid) == len(names[1]) // 2
    trained = {
        cut_id
        for step in make_data(table, SETTINGS.model_copy(update={"valid_hours": 1e-4, "seed": 3})).steps(
            DataState()
        )
        for batch in step.batches
        for cut_id in batch.cut_ids
    }
    speakers = {rows[cut_id]["speaker"] for cut_id in trained}
    assert len(speakers) == 1 and f"speaker {speakers.pop()}" not in scan.choice.held_out
    with pytest.raises(ValueError, match=r"valid_hours 1: no speaker would be left"):
        scan_table(table, valid_hours=1.0)


@pytest.mark.parametrize(
    ("rates", "best"), [([0.9, 0.3, 0.8, 0.7, 0.5], 2), ([0.9, 0.8, 0.7, 0.6, 0.2], None)]
)
def test_the_best_epoch_or_the_mean_is_kept_by_word_errors(
    make_table: MakeTable, monkeypatch: pytest.MonkeyPatch, rates: list[float], best: int | None
) -> None:
    settings = SETTINGS.model_copy(update={"valid_hours": 1e-4, "epochs": 4, "average_epochs": 2})
    trainer = with_held_out(make_table(LENGTHS * 2), settings)
    told = iter(rates)
    monkeypatch.setattr(trainer.keeper._held_out, "errors", lambda student: (round(100 * next(told)), 100))
    states: list[dict[str, torch.Tensor]] = []
    seen: list[Progress] = []

    def report(progress: Progress, state: Any) -> None:
        seen.append(progress)
        if progress.epoch > len(states):
            states.append({k: v.clone() for k, v in trainer.model.student.state_dict().items()})

    trainer.run(report)
    assert seen[-1].valid_wer == rates[3]
    assert trainer.keeper.best_wer == min(rates)
    kept = trainer.student_state()
    wanted = states[best - 1] if best else trainer.keeper._average.mean()
    assert all(torch.equal(kept[name], tensor) for name, tensor in wanted.items())
    assert all(torch.equal(v, states[-1][k]) for k, v in trainer.model.student.state_dict().items())


def test_a_training_that_goes_on_knows_its_best_epoch(make_table: MakeTable) -> None:
    settings = SETTINGS.model_copy(update={"valid_hours": 1e-4, "epochs": 3, "checkpoint_steps": 5})
    table = make_table(LENGTHS * 2)
    whole = with_held_out(table, settings)
    states: list[bytes] = []

    def report(progress: Progress, state: Callable[[], Any] | None) -> None:
        if state is not None:
            file = io.BytesIO()
            torch.save(state(), file)
            states.append(file.getvalue())

    whole.run(report)
    assert len(states) > 2 and whole.keeper.best_wer is not None
    for state in states:
        resumed = with_held_out(table, settings)
        resumed.load_state(torch.load(io.BytesIO(state), weights_only=True))
        resumed.run(lambda progress, state: None)
        assert resumed.keeper.best_wer == whole.keeper.best_wer
        ours = resumed.student_state()
        assert all(torch.equal(ours[name], tensor) for name, tensor in whole.student_state().items())


def test_exponential_mean() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average, expected = WeightAverage(model, decay=0.5), None
    for number in range(20):
        model.weight.data.fill_(float(number))
        average.update(model)
        keep = min(0.5, (1 + number) / (10 + number))
        expected = float(number) if expected is None else keep * expected + (1 - keep) * number
    assert float(average.mean()["weight"]) == pytest.approx(expected, rel=1e-5)


def test_mean_of_all_steps_is_kept(make_table: MakeTable) -> None:
    trainer = make_trainer(make_table(LENGTHS), SETTINGS.model_copy(update={"ema": 0.9}))
    trainer.run(lambda progress, state: None)
    now, kept = trainer.model.student.state_dict(), trainer.student_state()
    assert trainer.keeper._average._updates == trainer.step
    assert not torch.equal(now["output.weight"], kept["output.weight"])


def train(rank: int, table: IndexTable, folder: str, world_size: int, settings: DistillConfig) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
        )
    trainer = StudentTrainer(
        make_model(settings, table),
        make_data(table, settings, rank=rank, world_size=world_size),
        settings,
        device=torch.device("cpu"),
        wrap=DistributedDataParallel if world_size > 1 else lambda module: module,
    )
    trainer.run(lambda progress, state: None)
    parameters = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    torch.save(parameters, f"{folder}/{world_size}-{rank}.pt")
    if world_size > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.integration
def test_two_workers_are_one_that_accumulates_two(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(LENGTHS * 2, texts=["a cat", None, "a dog"])
    settings = SETTINGS.model_copy(update={"epochs": 2, "batch_seconds": 1.0, "untranscribed": 1.0})
    train(0, table, str(tmp_path), 1, settings.model_copy(update={"accumulate": 2}))
    context = multiprocessing.get_context("spawn")
    arguments = [(rank, table, str(tmp_path), 2, settings) for rank in range(2)]
    processes = [context.Process(target=train, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=200)
    assert [process.exitcode for process in processes] == [0, 0]
    one, first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("1-0", "2-0", "2-1"))
    start = dict(make_model(settings, table).named_parameters())
    for name, parameter in one.items():
        assert torch.equal(first[name], second[name]), name
        # Biases of keys and those before a batch norm change nothing: their gradient is rounding, which Adam makes as
        # large as any other.
        if name.endswith("conv_module.sequential.2.bias"):
            continue
        if name.endswith("in_proj_bias"):
            keys = slice(len(parameter) // 3, 2 * len(parameter) // 3)
            parameter[keys] = first[name][keys]
        torch.testing.assert_close(first[name], parameter, atol=2e-5, rtol=1e-4, msg=name)
    assert any(not torch.allclose(one[name], start[name], atol=1e-3) for name in one)


def test_brain_floats(make_table: MakeTable) -> None:
    settings = SETTINGS.model_copy(update={"precision": "bfloat16", "epochs": 1})
    trainer = make_trainer(make_table(LENGTHS[:4]), settings)
    trainer.run(lambda progress, state: None)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())


def test_a_loss_that_is_not_finite_names_its_utterances(make_table: MakeTable) -> None:
    trainer = make_trainer(
        make_table(LENGTHS), SETTINGS.model_copy(update={"accumulate": 2, "batch_seconds": 1.0})
    )
    step = next(trainer._data.steps(DataState()))
    step.batches[1].examples[0].features_TF.fill_(float("nan"))
    with pytest.raises(ValueError, match="step 0: the loss or its gradient") as raised:
        trainer._train_step(step, Meter())
    assert all(cut_id in str(raised.value) for cut_id in step.batches[1].cut_ids)
    assert not any(cut_id in str(raised.value) for cut_id in step.batches[0].cut_ids)
