"""Sections put together: students by name, the settings of the fit, and what makes a result what it is."""

from dataclasses import asdict, fields
from typing import Any

import pytest
from pydantic import BaseModel

from mvqkd.models.quantizer import FitConfig, FitSettings
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.kinds import EmformerConfig, OwnConfig
from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_config import RunConfig, StudentOverrides
from mvqkd.pipeline.run_file import config_from_text
from mvqkd.pipeline.run_sections import QuantizerConfig, TableOverrides
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.section import identity_of, speed_only_keys

BASE = "corpus: {root: data}\nteacher: {path: teacher}\nstorage: {root: runs/x}\n"


def of(text: str, *overrides: str) -> RunConfig:
    return config_from_text(BASE + text, "run.yaml", overrides)


def test_the_usual_students() -> None:
    config = of("distill: {loss_scale: 0.3}\n")
    assert config.student_names() == ["baseline", "mvqkd"]
    assert config.default_student() == "mvqkd"
    student, without = config.student_settings("baseline")
    assert (student, without.loss_scale) == (config.student, 0.0)
    assert without == config.distill.model_copy(update={"loss_scale": 0.0})
    assert config.student_settings("mvqkd") == (config.student, config.distill)


def test_the_usual_students_without_a_baseline_or_codes() -> None:
    config = of("distill: {baseline: false}\n")
    assert config.student_names() == ["mvqkd"]
    # It can be asked for all the same.
    assert config.student_settings("baseline")[1].loss_scale == 0
    config = of("distill: {loss_scale: 0}\n")
    assert (config.student_names(), config.default_student()) == (["baseline"], "baseline")


def test_students_by_name() -> None:
    config = of(
        "student: {num_layers: 4}\ndistill: {lr: 0.01}\nstudents:\n"
        "  plain: {distill: {loss_scale: 0.0}}\n  wide-2: {student: {encoder_dim: 256}, distill: {epochs: 3}}\n"
    )
    assert config.student_names() == ["plain", "wide-2"]
    assert config.student_settings("plain") == (
        config.student,
        config.distill.model_copy(update={"loss_scale": 0.0}),
    )
    student, distill = config.student_settings("wide-2")
    assert (type(student), type(distill)) == (StudentConfig, DistillConfig)
    assert asdict(student) == {**asdict(config.student), "encoder_dim": 256}
    assert distill == config.distill.model_copy(update={"epochs": 3})
    with pytest.raises(ConfigError, match="no student 'mvqkd'; there are plain, wide-2"):
        config.student_settings("mvqkd")
    with pytest.raises(ConfigError, match="which student"):
        config.default_student()
    assert of("", "students.one.distill.lr=0.5").default_student() == "one"


def test_an_unknown_one_of_the_usual_students() -> None:
    with pytest.raises(ConfigError, match="no student 'mvkqd'; there are baseline, mvqkd"):
        of("").student_settings("mvkqd")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "students.a.student.encoder_dims=8",
            "students.a.student.encoder_dims: unknown key; did you mean encoder_dim?",
        ),
        ("students.a.distil.lr=1", "students.a.distil: unknown key; did you mean distill?"),
        (
            "students.a.student.num_heads=7",
            "students.a.student: encoder_dim 144 is not a multiple of num_heads 7",
        ),
        (
            "students.a.student={kind: emformer, conv_kernel: 7}",
            "students.a.student.conv_kernel: is a key of student.kind conformer, not of emformer; remove it",
        ),
        (
            "students.a.student={kind: own}",
            "students.a.student.import_path: is missing; add it to the run file",
        ),
        (
            "students.a.student.kind=zipformer",
            "students.a.student.kind: input should be 'conformer', 'emformer' or 'own', not 'zipformer'",
        ),
        (
            "students.a.student.num_layers='6'",
            "students.a.student.num_layers: input should be a valid integer, not '6'",
        ),
        ("students.a.student.num_layers=2", "students.a: distill.student_layer 3 is beyond the last layer"),
        (
            "students.a.distill.batch_seconds=5",
            "students.a: distill.batch_seconds 5.0 is less than one utterance may last",
        ),
        ("students.a.distill.lr=.inf", "students.a.distill.lr: input should be a finite number"),
        ("students.a/b={}", "students.a/b: a name has letters, digits, - and _ only"),
        ("students={}", "students: names no student"),
        ("students.baseline={}", "students.baseline: its distill.loss_scale is 0.1"),
        ("students.a=3", "students.a: has keys and values below it, not 3"),
        ("student=3", "student: has keys and values below it, not 3"),
    ],
)
def test_wrong_students_are_refused_with_their_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of("", override)
    assert message in str(caught.value)


def test_ctc_alone_has_no_ctc_beside_it() -> None:
    with pytest.raises(ConfigError, match=r"students\.fast: distill\.ctc_scale 0\.3 is of a CTC loss beside"):
        of("distill: {ctc_scale: 0.3}\nstudents: {fast: {student: {loss: ctc}}}\n")
    of("distill: {ctc_scale: 0.3}\nstudents: {fast: {student: {loss: ctc}, distill: {ctc_scale: 0.0}}}\n")


def test_students_of_other_kinds_keep_what_they_have_in_common() -> None:
    config = of(
        "student: {encoder_dim: 96, conv_kernel: 7, units: sentencepiece}\nstudents:\n"
        "  live: {student: {kind: emformer, segment_ms: 320}}\n  fast: {student: {loss: ctc}}\n"
        "  theirs: {student: {kind: own, import_path: 'a.b:C'}}\n"
        "  wide: {student: {kind: own, import_path: 'a.b:C', options: {width: 8}}}\n"
    )
    live, fast, theirs, wide = (config.student_settings(name)[0] for name in config.student_names())
    assert live == EmformerConfig(encoder_dim=96, units="sentencepiece", segment_ms=320)
    assert fast == StudentConfig(encoder_dim=96, conv_kernel=7, units="sentencepiece", loss="ctc")
    assert theirs == OwnConfig(import_path="a.b:C", units="sentencepiece")
    assert wide == OwnConfig(import_path="a.b:C", options={"width": 8}, units="sentencepiece")


def test_text_of_a_student_is_text() -> None:
    student, _ = of("students: {a: {student: {units: sentencepiece}}}\n").student_settings("a")
    assert student.units == "sentencepiece"
    with pytest.raises(
        ConfigError, match=r"students\.a\.student: units must be char or sentencepiece, not 'yes'"
    ):
        of("students: {a: {student: {units: yes}}}\n")


def test_the_settings_of_the_fit_are_declared_once() -> None:
    own = set(QuantizerConfig.__annotations__)
    inherited = {field.name for field in fields(FitSettings)} - own
    assert inherited == set(QuantizerConfig.model_fields) - own
    for field in fields(FitSettings):
        if field.name in inherited:
            assert QuantizerConfig.model_fields[field.name].default == field.default


def test_fit_config_of_a_run() -> None:
    config = of(
        "quantizer: {num_codebooks: 4, anneal_rounds: 40, tolerance: 0.01, seed: 7, ordered: true}\n"
    ).quantizer
    fit = config.fit_config()
    assert fit == FitConfig(num_codebooks=4, anneal_rounds=40, tolerance=0.01, seed=7, ordered=True)
    assert (fit.steps_between_measurements, fit.steps_between_states) == (4, 4)
    paper = of(
        "quantizer: {method: paper, phase_one_steps: 100, phase_two_steps: 300}\n"
    ).quantizer.fit_config()
    assert (paper.method, paper.steps_between_measurements, paper.steps_between_states) == ("paper", 20, 20)


def test_settings_that_earlier_quantizers_hold() -> None:
    of_before: dict[str, Any] = {
        "num_codebooks": 8,
        "codebook_size": 256,
        "method": "lsq",
        "predictability": 0.0015,
        "ordered": False,
        "round_frames": 32768,
        "anneal_rounds": 60,
        "tolerance": 0.001,
        "phase_one_steps": 10000,
        "phase_two_steps": 10000,
        "batch_size": 512,
        "lr": 0.005,
        "sample_hours": 20.0,
        "max_frames": 400000,
        "valid_fraction": 0.05,
        "seed": 1,
    }
    assert of("").quantizer.model_dump() == of_before
    limited = of("quantizer: {max_seconds: 60}\n").quantizer
    assert limited.model_dump() == {**of_before, "max_seconds": 60.0}
    assert limited.fit_config().max_seconds == 60.0


def test_what_only_changes_the_speed_is_no_part_of_the_identity() -> None:
    # Part of the digests of students trained before.
    assert speed_only_keys(DistillConfig) == {
        "baseline",
        "cache_mb",
        "decode_processes",
        "decode_threads",
        "max_failures",
        "gpus_per_worker",
        "checkpoint_steps",
    }
    slow, fast = (
        of(""),
        of("", "distill.cache_mb=0", "distill.decode_threads=9", "teacher.device=cpu", "extract.actors=3"),
    )
    for section in ("distill", "teacher", "extract"):
        assert identity_of(getattr(slow, section)) == identity_of(getattr(fast, section))
    assert identity_of(slow.distill) != identity_of(of("", "distill.lr=0.5").distill)
    assert identity_of(slow.student)["num_layers"] == StudentConfig().num_layers
    assert "lr" in identity_of(slow.distill)
    assert identity_of(slow.extract) == {
        "shard_hours": 5.0,
        "speeds": (1.0,),
        "search": "fast",
        "max_unreadable": 0.2,
    }


def test_every_section_is_immutable_and_complete() -> None:
    for name, field in RunConfig.model_fields.items():
        section = {"students": StudentOverrides, "tables": TableOverrides}.get(name, field.annotation)
        if name == "student":
            continue
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        assert section.model_config["frozen"], name
        assert section.model_config["extra"] == "forbid", name


def test_no_cluster_at_all() -> None:
    assert of("cluster: {address: none}\n").cluster.address == "none"
