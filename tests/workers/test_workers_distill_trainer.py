"""The training loop: it learns, it resumes to the bit, and every parameter takes part."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_fakes import LENGTHS, SETTINGS, batches_of, make_data, make_model, make_trainer

from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill import trainer as trainer_module
from mvqkd.workers.distill.data import DataState, Step
from mvqkd.workers.distill.examples import Batch
from mvqkd.workers.distill.meter import Meter, Progress
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.trainer import StudentTrainer

MakeTable = Callable[..., IndexTable]


def run(trainer: StudentTrainer) -> tuple[list[Progress], list[bytes]]:
    """Progress and checkpoints, as bytes, of a whole training."""
    seen: list[Progress] = []
    states: list[bytes] = []

    def report(progress: Progress, state: Callable[[], dict[str, Any]] | None) -> None:
        seen.append(progress)
        if state is not None:
            file = io.BytesIO()
            torch.save(state(), file)
            states.append(file.getvalue())

    trainer.run(report)
    return seen, states


@pytest.mark.parametrize(
    "settings", [SETTINGS, SETTINGS.model_copy(update={"loss_scale": 0.0, "ctc_scale": 0.3})]
)
def test_resumed_in_the_middle_of_an_epoch(make_table: MakeTable, settings: DistillConfig) -> None:
    table = make_table(LENGTHS)
    whole = make_trainer(table, settings)
    _, states = run(whole)
    assert len(states) >= 3
    for data in states[:2]:
        resumed = make_trainer(table, settings)
        resumed.load_state(torch.load(io.BytesIO(data), weights_only=True))
        assert 0 < resumed.step < whole.step and 0 < resumed.done < 1
        run(resumed)
        assert (resumed.step, resumed.epoch) == (whole.step, settings.epochs)
        for name, tensor in whole.student_state().items():
            assert torch.equal(tensor, resumed.student_state()[name]), name
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_losses_fall(make_table: MakeTable) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 12, "batch_seconds": 4.0, "lr": 5e-3})
    seen, _ = run(make_trainer(make_table(LENGTHS), settings))
    ends = [progress for progress in seen if progress.utterances_per_s > 0]
    assert ends[-1].transducer_loss < 0.6 * ends[0].transducer_loss
    first, last = ends[0].codebook_loss, ends[-1].codebook_loss
    assert first is not None and last is not None and last < 0.95 * first
    assert first == pytest.approx(torch.tensor(16.0).log().item(), abs=0.8)
    assert [progress.step for progress in seen] == sorted(progress.step for progress in seen)
    assert (seen[-1].epoch, seen[-1].done, seen[-1].left_out) == (12, 1.0, 0)


def test_student_starts_the_same_with_and_without_codes(make_table: MakeTable) -> None:
    table = make_table(LENGTHS[:2])
    with_codes = make_model(SETTINGS, table)
    without = make_model(SETTINGS.model_copy(update={"loss_scale": 0.0}), table)
    more = set(with_codes.state_dict()) - set(without.state_dict())
    assert more and not any(name.startswith("student.") for name in more)
    for name, tensor in with_codes.student.state_dict().items():
        assert torch.equal(tensor, without.student.state_dict()[name])


@pytest.mark.parametrize("changes", [{}, {"loss_scale": 0.0}, {"ctc_scale": 0.3}])
def test_every_parameter_has_a_gradient(make_table: MakeTable, changes: dict[str, float]) -> None:
    settings = SETTINGS.model_copy(update=changes)
    table = make_table(LENGTHS[:4])
    model = make_model(settings, table)
    batch = batches_of(make_data(table, settings))[0]
    features = [example.features_TF for example in batch.examples]
    model(*batch.padded(features, torch.device("cpu"))).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("in_proj_bias"), name


def test_weights_of_the_last_epochs_are_averaged(make_table: MakeTable) -> None:
    trainer = make_trainer(make_table(LENGTHS), SETTINGS.model_copy(update={"epochs": 3}))
    ends: list[dict[str, torch.Tensor]] = []

    def report(progress: Progress, state: object) -> None:
        if progress.epoch > len(ends):
            ends.append({k: v.clone() for k, v in trainer.model.student.state_dict().items()})

    trainer.run(report)
    for name, tensor in trainer.student_state().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (ends[1][name] + ends[2][name]) / 2, msg=name)
        else:
            assert torch.equal(tensor, ends[2][name]), name


def test_learning_rate(make_table: MakeTable) -> None:
    trainer = make_trainer(make_table(LENGTHS), SETTINGS.model_copy(update={"epochs": 5}))
    rates = []
    trainer.run(lambda progress, state: rates.append(progress.lr))
    assert max(rates) < SETTINGS.lr and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.02 * SETTINGS.lr)
    fresh = make_trainer(make_table(LENGTHS), SETTINGS)
    assert fresh.lr() == pytest.approx(SETTINGS.lr / 2)


@pytest.mark.parametrize("loss_scale", [0.1, 0.0])
def test_batch_of_bad_audio_does_not_break_the_training(
    make_table: MakeTable, tmp_path: Path, loss_scale: float
) -> None:
    table = make_table([0.5] * 24)
    settings = SETTINGS.model_copy(update={"loss_scale": loss_scale, "epochs": 1, "batch_seconds": 0.6})
    trainer = make_trainer(table, settings)
    (tmp_path / "audio/u003.wav").unlink()
    seen, _ = run(trainer)
    assert seen[-1].step == 24 and seen[-1].left_out == 1 and list(trainer.left_out) == ["u003"]
    assert all(tensor.isfinite().all() for tensor in trainer.student_state().values())


def everything(trainer: StudentTrainer) -> bytes:
    """Model and optimizer, as bytes."""
    file = io.BytesIO()
    state = trainer.state()
    torch.save({"model": state["model"], "optimizer": state["optimizer"]["state"]}, file)
    return file.getvalue()


def nothing(trainer: StudentTrainer) -> Step:
    return Step(batches=(Batch(examples=(), specs=trainer._data.specs),), after=DataState())


def test_batch_of_bad_audio_changes_nothing(make_table: MakeTable) -> None:
    trainer = make_trainer(make_table(LENGTHS))
    for step in trainer._data.steps(DataState()):
        trainer._train_step(step, Meter())
    before = everything(trainer)
    trainer._train_step(nothing(trainer), Meter())
    assert everything(trainer) == before
    trainer._train_step(step, Meter())
    assert everything(trainer) != before


def test_silence_that_stands_in_for_the_other_ranks_stays_out_of_the_batch_norms(
    make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_table(LENGTHS))
    step = next(trainer._data.steps(DataState()))
    trainer._train_step(step, Meter())
    buffers = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    weights = trainer.model.student.output.weight.detach().clone()
    monkeypatch.setattr(trainer_module, "_several_processes", lambda: True)
    trainer._train_step(nothing(trainer), Meter())
    for name, buffer in trainer.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    # The step is taken, with the gradients of the other ranks.
    assert not torch.equal(trainer.model.student.output.weight, weights)
    trainer._train_step(step, Meter())
    assert any(not torch.equal(buffer, buffers[name]) for name, buffer in trainer.model.named_buffers())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trains_and_averages_on_cuda(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    trainer = make_trainer(table, device="cuda")
    _, states = run(trainer)
    assert trainer.done == 1.0 and SETTINGS.average_epochs == SETTINGS.epochs == 2
    resumed = make_trainer(table, device="cuda")
    resumed.load_state(torch.load(io.BytesIO(states[0]), map_location="cuda", weights_only=True))
    run(resumed)
    for name, tensor in trainer.student_state().items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(resumed.student_state()[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_gradient_that_is_not_finite(make_table: MakeTable) -> None:
    trainer = make_trainer(make_table(LENGTHS[:4]))
    with torch.no_grad():
        trainer.model.student.output.bias[0] = float("nan")
    with pytest.raises(
        ValueError, match=r"step 0: the loss or its gradient holds NaN .*u00\d.*lower distill.lr"
    ):
        run(trainer)


def test_a_long_epoch_says_where_it_is(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(LENGTHS)
    _, kept = run(make_trainer(table))
    monkeypatch.setattr(trainer_module, "REPORT_EVERY_S", 0.0)
    trainer = make_trainer(table)
    seen, states = run(trainer)
    assert sorted({progress.step for progress in seen}) == list(range(1, trainer.step + 1))
    assert len(states) == len(kept)


def test_no_report_is_empty(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the half minutes fall, the end of an epoch has steps to tell of."""
    monkeypatch.setattr(trainer_module, "REPORT_EVERY_S", 0.0)
    trainer = make_trainer(make_table(LENGTHS))
    seen, _ = run(trainer)
    assert len(seen) == trainer.step
    assert all(progress.transducer_loss > 0 for progress in seen)
