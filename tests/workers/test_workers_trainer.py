"""The training loop: it learns, it resumes to the bit, and every parameter takes part."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_workers_distill_data import ALIGNMENT, LENGTHS, make_batches

from mvqkd.models.distillation.heads import CodesHead
from mvqkd.models.distillation.model import AttachedHead, DistillationModel
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import CharUnits
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill import trainer as trainer_module
from mvqkd.workers.distill.batches import Batch
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.trainer import Progress, StudentTrainer

MakeTable = Callable[..., IndexTable]
STUDENT = StudentConfig(
    encoder_dim=16, num_layers=2, num_heads=2, ffn_dim=32, conv_kernel=5, predictor_dim=8, joiner_dim=16
)
UNITS = CharUnits(" acdgot")
SETTINGS = DistillConfig(
    loss_scale=0.1, student_layer=1, epochs=2, batch_seconds=2.0, lr=2e-3, warmup_steps=2, checkpoint_steps=3,
    average_epochs=2, seed=1,
)  # fmt: skip


def make_model(settings: DistillConfig) -> DistillationModel:
    torch.manual_seed(settings.seed)
    student = ConformerTransducer(STUDENT, len(UNITS), ctc_scale=settings.ctc_scale)
    if not settings.loss_scale:
        return DistillationModel(student)
    head = CodesHead(STUDENT.encoder_dim, 2 * ALIGNMENT.frames_per_target, 16)
    attached = AttachedHead(layer=settings.student_layer, scale=settings.loss_scale, head=head)
    return DistillationModel(student, {"codes": attached})


def make_trainer(
    table: IndexTable, settings: DistillConfig = SETTINGS, *, device: str = "cpu"
) -> StudentTrainer:
    batches = make_batches(table, seed=settings.seed, cache_mb=64, batch_seconds=settings.batch_seconds)
    return StudentTrainer(make_model(settings).to(device), batches, settings, device=torch.device(device))


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
        assert 0 < resumed.step < whole.total_steps
        run(resumed)
        assert resumed.step == whole.step == whole.total_steps
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
    assert (seen[-1].epoch, seen[-1].step, seen[-1].left_out) == (12, seen[-1].total_steps, 0)


def test_student_starts_the_same_with_and_without_codes() -> None:
    with_codes = make_model(SETTINGS)
    without = make_model(SETTINGS.model_copy(update={"loss_scale": 0.0}))
    assert set(with_codes.heads) == {"codes"} and not without.heads
    for name, tensor in with_codes.student.state_dict().items():
        assert torch.equal(tensor, without.student.state_dict()[name])


@pytest.mark.parametrize("changes", [{}, {"loss_scale": 0.0}, {"ctc_scale": 0.3}])
def test_every_parameter_has_a_gradient(make_table: MakeTable, changes: dict[str, float]) -> None:
    settings = SETTINGS.model_copy(update=changes)
    model = make_model(settings)
    batch = next(iter(make_batches(make_table(LENGTHS[:4])).epoch(0)))
    *inputs, targets_BTK = batch.padded(list(batch.features), torch.device("cpu"))
    model(*inputs, {"codes": targets_BTK}).total.backward()
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


NOTHING = Batch(cut_ids=(), features=(), units=(), targets=())


def test_batch_of_bad_audio_changes_nothing(make_table: MakeTable) -> None:
    trainer = make_trainer(make_table(LENGTHS))
    for batch in trainer._batches.epoch(0):
        trainer._train_step(batch)
    before = everything(trainer)
    assert trainer._train_step(NOTHING) is None
    assert everything(trainer) == before
    trainer._train_step(batch)
    assert everything(trainer) != before


def test_silence_that_stands_in_for_the_other_ranks_stays_out_of_the_batch_norms(
    make_table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_table(LENGTHS))
    batch = next(iter(trainer._batches.epoch(0)))
    trainer._train_step(batch)
    buffers = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    weights = trainer.model.student.output.weight.detach().clone()
    monkeypatch.setattr(trainer_module, "_several_processes", lambda: True)
    assert trainer._train_step(NOTHING) is None
    for name, buffer in trainer.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    # The step is taken, with the gradients of the other ranks.
    assert not torch.equal(trainer.model.student.output.weight, weights)
    trainer._train_step(batch)
    assert any(not torch.equal(buffer, buffers[name]) for name, buffer in trainer.model.named_buffers())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trains_and_averages_on_cuda(make_table: MakeTable) -> None:
    table = make_table(LENGTHS)
    trainer = make_trainer(table, device="cuda")
    _, states = run(trainer)
    assert trainer.step == trainer.total_steps and SETTINGS.average_epochs == SETTINGS.epochs == 2
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
    with pytest.raises(ValueError, match=r"step 0: the gradient holds NaN .*u00\d.*lower distill.lr"):
        run(trainer)


def test_model_that_cannot_be() -> None:
    student = ConformerTransducer(STUDENT, len(UNITS))
    attached = AttachedHead(layer=3, scale=0.1, head=CodesHead(16, 4, 16))
    with pytest.raises(ValueError, match="student_layer 3 is not one of the student's 2 encoder layers"):
        DistillationModel(student, {"codes": attached})
    with pytest.raises(ValueError, match="needs a student with a CTC head"):
        ConformerTransducer(STUDENT, len(UNITS), ctc_scale=0.3, with_ctc=False)
    with pytest.raises(ValueError, match="encoder_dim 15"):
        replace(STUDENT, encoder_dim=15)


def test_a_long_epoch_says_where_it_is(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(LENGTHS)
    _, kept = run(make_trainer(table))
    monkeypatch.setattr(trainer_module, "REPORT_EVERY_S", 0.0)
    trainer = make_trainer(table)
    seen, states = run(trainer)
    assert sorted({progress.step for progress in seen}) == list(range(1, trainer.total_steps + 1))
    assert len(states) == len(kept)


def test_no_report_is_empty(make_table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the half minutes fall, the end of an epoch has steps to tell of."""
    monkeypatch.setattr(trainer_module, "REPORT_EVERY_S", 0.0)
    trainer = make_trainer(make_table(LENGTHS))
    seen, _ = run(trainer)
    assert len(seen) == trainer.total_steps
    assert all(progress.transducer_loss > 0 for progress in seen)
