"""Further targets: another table of the same cuts, a teacher in the training step, noise that leaves targets alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_fakes import ALIGNMENT, LENGTHS, SETTINGS, STUDENT, UNITS, batches_of, make_data
from workers_fakes import FakeTeacher, make_quantizer, write_sound

from mvqkd.models.distillation.heads import CodesHead, EmbeddingHead
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.storage.location import open_location
from mvqkd.storage.rows import arrow_to_rows
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.distill.job import Place, Speech, TrainJob, build_trainer
from mvqkd.workers.distill.live_teacher import LiveTeacher
from mvqkd.workers.distill.meter import Progress
from mvqkd.workers.distill.noise import NoiseMixer, find_noises
from mvqkd.workers.distill.rows import scan_table
from mvqkd.workers.distill.settings import DistillConfig, TargetConfig
from mvqkd.workers.distill.target_sources import JoinedTable, TableCodes
from mvqkd.workers.distill.targets import targets_of

MakeTable = Callable[..., IndexTable]


def other_table(
    table: IndexTable, folder: Path, *, without: str | None = None, shift_s: float = 0.0
) -> IndexTable:
    """The same cuts, the codes of another quantizer: here each is 15 minus that of the first table."""
    contract = replace(table.contract, quantizer_id="another one")
    other = IndexTable.create(open_location(str(folder)), contract)
    for name in table.committed():
        rows = []
        for row in arrow_to_rows(table.read_shard(name)):
            if row["cut_id"] != without:
                rows.append({**row, "codes": 15 - row["codes"], "start": row["start"] + shift_s})
        other.write_shard(f"{name.rpartition('-')[0]}-ffffffffffff", rows)  # type: ignore[arg-type]
    return other


def trained(table: IndexTable, tmp_path: Path, settings: DistillConfig, live: Any = None) -> Any:
    scan = scan_table(table)
    speech = Speech(
        table=table, root=None, choice=scan.choice, epoch_s=scan.seconds["own"], num_rows=scan.rows["own"]
    )
    job = TrainJob(
        digest="x", speech=speech, units=(UNITS.kind, UNITS.data), student=STUDENT, distill=settings,
        options={}, out=open_location(str(tmp_path / "student")), threads=1,
    )  # fmt: skip
    torch.manual_seed(1)
    student = ConformerTransducer(STUDENT, len(UNITS))
    targets = targets_of(
        settings,
        table.contract,
        student.frames,
        open_table=lambda path: IndexTable.open(open_location(path)),
        live_teacher=live,
    )
    return build_trainer(job, student, UNITS, targets, Place(device=torch.device("cpu")))


def test_two_tables_at_once(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(LENGTHS)
    other_table(table, tmp_path / "other")
    wanted = TargetConfig(
        table=str(tmp_path / "other"),
        student_layer=2,
        scale=0.2,
        joint=True,
        label_smoothing=0.1,
        per_codebook=True,
    )
    settings = SETTINGS.model_copy(update={"targets": {"deep": wanted}, "epochs": 6, "lr": 1e-2})
    trainer = trained(table, tmp_path, settings)
    heads, attached = trainer.model.heads, trainer.model._attached
    assert isinstance(heads["deep"], CodesHead) and heads["deep"].codebooks.is_joint
    assert attached == {"codebook": (1, 0.1), "deep": (2, 0.2 / 4)}
    for batch in batches_of(trainer._data):
        for example in batch.examples:
            ours, theirs = example.targets["codebook"], example.targets["deep"]
            assert torch.equal(theirs[ours >= 0], 15 - ours[ours >= 0])
    seen: list[Progress] = []
    trainer.run(lambda progress, state: seen.append(progress))
    assert seen[-1].head_losses["deep"] < seen[0].head_losses["deep"]


def test_a_table_of_other_audio_or_without_a_cut_is_named(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table([0.5] * 40)
    data = make_data(table)
    for number, (options, words) in enumerate((
        ({"without": "u003"}, "has nothing for this cut; extract that table to its end"),
        ({"shift_s": 0.1}, "start is 0.0 now, but was 0.1 when its codes were made"),
    )):  # fmt: skip
        other = other_table(table, tmp_path / f"other{number}", **options)  # type: ignore[arg-type]
        data = make_data(table, SETTINGS.model_copy(update={"epochs": 1}))
        data._make._sources = {"deep": JoinedTable(other, TableCodes(other.contract, ALIGNMENT))}  # type: ignore[attr-defined]
        data.specs = {}
        if "without" in options:
            batches_of(data)
            assert list(data.left_out) == ["u003"] and words in data.left_out["u003"]
        else:
            with pytest.raises(ValueError, match=words):
                batches_of(data)


def test_live_codes_are_those_of_the_table(make_table: MakeTable, tmp_path: Path) -> None:
    """The teacher in the training step and the table of the same quantizer give the same targets."""
    table = make_table(LENGTHS)
    wanted = {
        "live": TargetConfig(quantized=True, student_layer=2),
        "l1": TargetConfig(distance="l1", student_layer=1),
    }
    settings = SETTINGS.model_copy(update={"targets": wanted, "epochs": 1})

    def live(target: TargetConfig) -> LiveTeacher:
        quantizer = make_quantizer() if target.quantized else None
        return LiveTeacher(FakeTeacher(), ALIGNMENT, quantizer=quantizer)

    trainer = trained(table, tmp_path, settings, live)
    assert isinstance(trainer.model.heads["l1"], EmbeddingHead) and trainer.model.heads["l1"].distance == "l1"
    for batch in batches_of(trainer._data):
        made = trainer._made_now(trainer._live["live"], batch)
        for row, example in zip(made, batch.examples, strict=True):
            stored = example.targets["codebook"]
            assert torch.equal(row[: len(stored)], stored) and (row[len(stored) :] == -100).all()
    seen: list[Progress] = []
    trainer.run(lambda progress, state: seen.append(progress))
    assert seen[-1].head_losses["live"] > 0 and seen[-1].head_losses["l1"] > 0


def test_noise_is_mixed_at_the_ratio_and_targets_stay(make_table: MakeTable, tmp_path: Path) -> None:
    (tmp_path / "noise/deep").mkdir(parents=True)
    write_sound(tmp_path / "noise/hum.wav", 0.2)
    write_sound(tmp_path / "noise/deep/hiss.wav", 3.0)
    noises = find_noises(str(tmp_path / "noise"))
    assert sorted(cut.id for cut in noises) == ["deep/hiss.wav", "hum.wav"]
    mixer = NoiseMixer(noises, AudioLoader(16_000), share=1.0, snr_db=(10.0, 10.0), seed=1)
    speech_T = torch.randn(16_000, generator=torch.Generator().manual_seed(1))
    heard = [mixer(speech_T, f"{number}") for number in range(6)]
    for heard_T in heard:
        snr_db = 10 * torch.log10(speech_T.square().mean() / (heard_T - speech_T).square().mean())
        assert float(snr_db) == pytest.approx(10.0, abs=0.01)
    assert torch.equal(mixer(speech_T, "3"), heard[3]) and not torch.equal(heard[0], heard[1])
    assert mixer(torch.zeros(100), "a").abs().sum() == 0
    some = NoiseMixer(noises, AudioLoader(16_000), share=0.3, snr_db=(0.0, 20.0), seed=1)
    share = sum(not torch.equal(some(speech_T, f"{n}"), speech_T) for n in range(200)) / 200
    assert share == pytest.approx(0.3, abs=0.1)

    table = make_table(LENGTHS)
    settings = SETTINGS.model_copy(update={"epochs": 2})
    clean, noisy = batches_of(make_data(table, settings)), batches_of(make_data(table, settings, noise=mixer))
    features = {}
    for a, b in zip(clean, noisy, strict=True):
        for one, two in zip(a.examples, b.examples, strict=True):
            assert torch.equal(one.targets["codebook"], two.targets["codebook"])
            assert not torch.equal(one.features_TF, two.features_TF)
            features.setdefault(two.cut_id, []).append(two.features_TF)
    assert all(not torch.equal(first, second) for first, second in features.values()), (
        "other noise in each epoch"
    )


def test_noise_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder or manifest on this machine"):
        find_noises(str(tmp_path / "none"))
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match=r"bad\.wav: no audio that can be read"):
        find_noises(str(tmp_path))
    with pytest.raises(ValueError, match="no recordings of noise"):
        NoiseMixer([], AudioLoader(16_000), share=1.0, snr_db=(1.0, 2.0), seed=1)


def test_what_a_target_would_ignore_is_refused(make_table: MakeTable, tmp_path: Path) -> None:
    for keys, words in (
        ({"quantized": True, "codebooks": 2}, "codebooks is of the codes in a table"),
        ({"table": "x", "quantized": True}, "quantized is of a teacher in the training step"),
    ):
        with pytest.raises(ValueError, match=words):
            TargetConfig(**keys)  # type: ignore[arg-type]
    for name in ("codebook", "a.b", ""):
        with pytest.raises(ValueError, match="letters, digits, - and _ only, and codebook is that of"):
            DistillConfig(targets={name: TargetConfig()})
    table = make_table(LENGTHS)
    other_table(table, tmp_path / "other")
    wanted = TargetConfig(table=str(tmp_path / "other"), codebooks=3, student_layer=1)
    with pytest.raises(ValueError, match=r"other has 2 codes a frame, not the 3 of codebooks"):
        trained(table, tmp_path, SETTINGS.model_copy(update={"targets": {"deep": wanted}}))
