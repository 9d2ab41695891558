"""Speech without transcripts: mixed in at a ratio, out of the table or of another one, or all there is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_fakes import (
    ALIGNMENT,
    LENGTHS,
    SETTINGS,
    STUDENT,
    UNITS,
    batches_of,
    make_data,
    make_model,
    make_trainer,
)

from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.data import DataState
from mvqkd.workers.distill.initial import freeze_unreached, start_from, untrained
from mvqkd.workers.distill.meter import Meter, Progress
from mvqkd.workers.distill.rows import scan_table
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.distill.student_record import StudentRecord, save_student
from mvqkd.workers.distill.target_sources import TableCodes
from mvqkd.workers.distill.trainer import StudentTrainer

MakeTable = Callable[..., IndexTable]
HALF = ["a cat", None]


def mixed(**changes: Any) -> DistillConfig:
    return SETTINGS.model_copy(update={"untranscribed": 1.0, "batch_seconds": 1.0, **changes})


@pytest.mark.parametrize("ratio", [0.25, 1.0, 3.0])
def test_mixed_at_the_ratio_that_is_asked_for(make_table: MakeTable, ratio: float) -> None:
    table = make_table(LENGTHS * 4, texts=HALF)
    texts = {row["cut_id"]: row["text"] for row in table.iter_rows()}
    steps = list(make_data(table, mixed(untranscribed=ratio, epochs=4)).steps(DataState()))
    own, others = [], []
    for step in steps:
        kinds = [batch.transcribed for batch in step.batches]
        assert kinds == sorted(kinds) and kinds.count(True) == 1, "the one that all ranks wait for comes last"
        for batch in step.batches:
            (own if batch.transcribed else others).extend(batch.cut_ids)
            assert all(bool(texts[cut_id]) == batch.transcribed for cut_id in batch.cut_ids)
            assert all((len(example.units_U) > 0) == batch.transcribed for example in batch.examples)
    end = steps[-1].after
    assert end.codes_s / end.own_s == pytest.approx(ratio, abs=0.1)
    assert end.own.epoch == 4 and len(own) >= 4 * 24 - 4
    if ratio == 1.0:
        assert {cut_id for cut_id, text in texts.items() if not text} <= set(others)


def test_resumed_in_the_middle(make_table: MakeTable) -> None:
    data = make_data(make_table(LENGTHS * 2, texts=HALF), mixed(untranscribed=1.7, epochs=3))
    whole = list(data.plan(DataState()))
    for number in (1, 7, len(whole) - 1):
        assert list(data.plan(DataState.from_dict(whole[number - 1].after.to_dict()))) == whole[number:]


def test_out_of_another_table_whose_transcripts_do_not_count(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(LENGTHS)
    data = make_data(table, mixed(epochs=1), others=[table])
    own = [b for b in batches_of(data) if b.transcribed]
    others = [b for b in batches_of(data) if not b.transcribed]
    assert others and all(len(e.units_U) == 0 for b in others for e in b.examples)
    assert {len(e.units_U) for b in own for e in b.examples} == {5}


def test_only_so_many_transcripts_are_used(make_table: MakeTable) -> None:
    table = make_table([0.5] * 80)
    scan = scan_table(table, transcribed_hours=10 / 3600)
    assert scan.seconds["own"] == pytest.approx(10, abs=4) and scan.rows["own"] + scan.rows["codes"] == 80
    assert scan_table(table, transcribed_hours=10 / 3600).seconds == scan.seconds
    assert len(scan.texts) == scan.rows["own"]
    fewer = scan_table(table, transcribed_hours=5 / 3600)
    assert 0 < fewer.rows["own"] < scan.rows["own"] < 80


def test_both_kinds_are_learned_from_and_every_parameter_takes_part(make_table: MakeTable) -> None:
    trainer = make_trainer(make_table(LENGTHS, texts=HALF), mixed(epochs=2))
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    seen: list[Progress] = []
    trainer.run(lambda progress, state: seen.append(progress))
    assert trainer.done == 1.0
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, start[name]), name


def test_codes_are_averaged_over_all_frames_and_transcripts_over_theirs(make_table: MakeTable) -> None:
    """The gradient of a mixed step is that of the two losses written out."""
    table = make_table(LENGTHS, texts=HALF)
    settings = mixed(grad_clip=1e9, time_masks=0, freq_masks=0)
    trainer = make_trainer(table, settings)
    step = next(s for s in trainer._data.steps(DataState()) if len(s.batches) == 2)
    other, own = step.batches
    model = make_model(settings, table)
    for module in (model, trainer.model):
        module.load_state_dict(trainer.model.state_dict())
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout | torch.nn.MultiheadAttention):
                part.p = part.dropout = 0.0  # type: ignore[assignment,union-attr]
    losses = []
    for batch in (other, own):
        features = [example.features_TF for example in batch.examples]
        losses.append(model(*batch.padded(features, torch.device("cpu"))))
    heads = sum(0.1 * loss.heads["codebook"].loss / loss.num_frames for loss in losses)
    model.zero_grad()
    trainer._optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
    seen: dict[str, torch.Tensor] = {}
    trainer._optimizer.zero_grad = lambda **_: seen.update(  # type: ignore[method-assign,assignment]
        {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    )
    trainer._train_step(step, Meter())
    total = torch.zeros(())
    for batch in (other, own):
        features = [example.features_TF for example in batch.examples]
        total = total + model(*batch.padded(features, torch.device("cpu")), heads_weight=0.5).total
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, seen[name], atol=1e-4, rtol=1e-3, msg=name)
    expected = losses[1].parts["transducer"] / losses[1].num_frames + heads / 2
    torch.testing.assert_close(total.detach(), expected.detach(), atol=1e-3, rtol=1e-3)


def test_codes_alone_train_an_encoder_that_another_training_starts_from(
    make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table(LENGTHS, texts=[None])
    settings = SETTINGS.model_copy(update={"pretrain": True, "epochs": 4})
    model = make_model(settings, table)
    freeze_unreached(model, {"codebook": TableCodes(table.contract, ALIGNMENT).spec})
    trainer = StudentTrainer(model, make_data(table, settings), settings, device=torch.device("cpu"))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen: list[Progress] = []
    trainer.run(lambda progress, state: seen.append(progress))
    assert trainer.done == 1.0 and seen[0].codebook_loss is not None and seen[-1].codebook_loss is not None
    assert seen[-1].codebook_loss < seen[0].codebook_loss and seen[-1].transducer_loss == 0.0
    stays = set(untrained(model.student))
    # The layer that predicts the codes is the first of two.
    assert stays and all(not name.startswith(("encoder.subsampling", "encoder.layers.0")) for name in stays)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) == (name.removeprefix("student.") in stays), name

    place = open_location(str(tmp_path / "pretrained"))
    record = StudentRecord(
        student=STUDENT.to_dict(), distill=settings.model_dump(), units={"kind": "char", "data": "?"}, contract={},
        sample_rate_hz=16_000, digest="a", steps=1, left_out={}, untrained=untrained(model.student),
    )  # fmt: skip
    save_student(place, trainer.student_state(), record)
    torch.manual_seed(2)
    student = ConformerTransducer(STUDENT, len(UNITS))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    stayed = start_from(student, place)
    assert set(stayed) == stays
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name] if name in stays else trainer.student_state()[name]), name


def test_a_start_of_another_size_is_refused(make_table: MakeTable, tmp_path: Path) -> None:
    place = open_location(str(tmp_path / "other"))
    record = StudentRecord(
        student=STUDENT.to_dict(), distill={}, units={"kind": "char", "data": "?"}, contract={},
        sample_rate_hz=16_000, digest="a", steps=1, left_out={},
    )  # fmt: skip
    save_student(place, ConformerTransducer(STUDENT, 3).state_dict(), record)
    with pytest.raises(
        ValueError, match=r"other: .* is of shape \(3, 8\) there and \(8, 8\) here; give both"
    ):
        start_from(ConformerTransducer(STUDENT, len(UNITS)), place)
    other = ConformerTransducer(replace(STUDENT, features="fbank"), 3)
    with pytest.raises(ValueError, match=r"trained on features log_mel, this student takes fbank"):
        start_from(other, place)


def test_what_makes_no_sense_is_refused() -> None:
    for changes, words in (
        ({"pretrain": True, "loss_scale": 0.0}, "pretrain trains on codes alone"),
        ({"pretrain": True, "valid_hours": 1.0}, "without its transcript"),
        ({"untranscribed": 1.0, "loss_scale": 0.0}, "teaches codes only"),
        ({"untranscribed_from": ["x"]}, "of which nothing would be read"),
    ):
        with pytest.raises(ValueError, match=words):
            DistillConfig(**changes)  # type: ignore[arg-type]


def test_settings_of_before_have_the_same_digest() -> None:
    assert set(SETTINGS.model_dump()) == {
        "loss_scale", "student_layer", "codebooks", "max_missing_frames", "delay_frames", "baseline", "ctc_scale",
        "epochs", "batch_seconds", "lr", "warmup_steps", "weight_decay", "grad_clip", "time_masks", "time_mask_s",
        "freq_masks", "freq_mask_bins", "average_epochs", "checkpoint_steps", "cache_mb", "decode_threads", "workers",
        "gpus_per_worker", "max_failures", "seed", "decode_processes",
    }  # fmt: skip
    assert DistillConfig(**SETTINGS.model_dump()) == SETTINGS
