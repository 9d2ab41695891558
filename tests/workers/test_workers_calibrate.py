"""The preflight: figures that are those of the parts by themselves, and warnings where the audio is another."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import MonoCut
from workers_fakes import RATE, make_cuts, make_embedder, make_quantizer, sound

from demo import teacher_model
from mvqkd.models.quantizer import rrl, usage_entropy_bits
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.calibrate import Calibration, Calibrator
from mvqkd.workers.ctc_reader import CtcReader, has_ctc_head, open_ctc_reader, word_error_rate
from mvqkd.workers.domain import warnings_of
from mvqkd.workers.embed import Embedded
from mvqkd.workers.loudness import Loudness, measure_loudness
from mvqkd.workers.quality import Quality
from mvqkd.workers.quantizer_record import QuantizerRecord, TrainingData
from mvqkd.workers.teacher import TeacherConfig

TEACHER = Path(teacher_model.__file__).parent / "teacher"


def calibrator(*, seconds: float = 0.2, quantizer: bool = True, reader: Any = None) -> Calibrator:
    return Calibrator(
        embedder=make_embedder(),
        quantizer=make_quantizer() if quantizer else None,
        reader=reader,
        loader=AudioLoader(RATE),
        seconds=seconds,
        batch_seconds=2.0,
        device=torch.device("cpu"),
    )


@pytest.fixture
def cuts(tmp_path: Path) -> list[MonoCut]:
    return make_cuts(tmp_path / "audio", [0.5, 0.7, 0.6, 0.4, 0.9, 0.8], texts=["a cat", None, "A dog"])


def test_figures_of_the_first_pass(cuts: list[MonoCut], tmp_path: Path) -> None:
    (tmp_path / "audio/u002.wav").unlink()
    notes: list[dict[str, Any]] = []
    found = calibrator().run(cuts, note=notes.append)
    assert (found.utterances, found.left_out) == (6, 1) and "u002" in found.problems[0]
    # The time is over long after the first pass, and its figures are of each utterance once.
    assert found.measured_hours * 3600 > 2 * 3.3 and found.measured_s > 0.1
    assert found.hours_per_worker_hour == pytest.approx(found.measured_hours * 3600 / found.measured_s)
    assert 0 < found.quantizer_share < 1 and found.peak_memory_bytes > 10_000_000
    quantizer = make_quantizer().eval()
    x = torch.cat([r.embeddings_TD for r in make_embedder()(cuts) if isinstance(r, Embedded)])
    codes = quantizer.encode(x, as_bytes=False)
    quality = found.quality
    assert quality is not None and quality.frames == len(x)
    assert quality.rrl == pytest.approx(rrl(x, quantizer.decode(codes)), rel=1e-4)
    assert quality.usage_entropy_bits == pytest.approx(usage_entropy_bits(codes, 16).tolist())
    assert quality.used_codes == [len(column.unique()) for column in codes.T]
    assert notes[-1]["done"] <= notes[-1]["total"] == 0.2
    assert (found.peak_device_bytes, found.device, found.teacher_wer) == (None, "cpu", None)


def test_without_a_quantizer_and_without_audio(cuts: list[MonoCut], tmp_path: Path) -> None:
    found = calibrator(quantizer=False).run(cuts)
    assert found.quality is None and found.quantizer_share == 0 and found.hours_per_worker_hour > 0
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"no utterance of the sample could be embedded: .*no such audio file"
    ):
        calibrator().run(cuts)


class OneText:
    def read(self, waveform: torch.Tensor) -> str:
        return "A CAT"


def test_the_teachers_own_word_error_rate(cuts: list[MonoCut]) -> None:
    found = calibrator(reader=OneText(), seconds=5.0)._read(cuts)
    assert found == (0.25, 4)  # two without text; "dog" is wrong in two of the other four
    assert word_error_rate(["a b", "C"], ["A b", "d"]) == pytest.approx(1 / 3)


def test_loudness_of_known_audio(tmp_path: Path) -> None:
    time_s = np.arange(RATE) / RATE
    tone = {"low": 0.5 * np.sin(2 * np.pi * 500 * time_s), "high": 0.5 * np.sin(2 * np.pi * 7000 * time_s)}
    tone["half"] = np.concatenate([tone["low"][: RATE // 2], np.zeros(RATE // 2)])
    cuts = make_cuts(tmp_path, [1.0])

    def of(name: str) -> Loudness:
        waveform = torch.from_numpy(tone[name].astype(np.float32))
        found = measure_loudness(cuts, lambda cut: waveform, sample_rate_hz=RATE, threads=1)
        assert found is not None
        return found

    assert of("low").rms_dbfs == pytest.approx(-9.03, abs=0.01) and of("low").silence_share == 0
    assert of("low").upper_half_db < -60 and of("high").upper_half_db > -0.01
    assert of("half").silence_share == 0.5 and of("half").rms_dbfs == pytest.approx(-12.04, abs=0.01)
    cuts[0].recording.sources[0].source = "/nowhere.wav"
    assert measure_loudness(cuts, AudioLoader(RATE), sample_rate_hz=RATE, threads=1) is None


def test_the_reader_reads_what_the_demos_teacher_reads() -> None:
    config = TeacherConfig(path=str(TEACHER), device="cpu")
    reader, model = open_ctc_reader(config), teacher_model.load_teacher(TEACHER)
    assert reader is not None
    waveforms = [sound(name, seconds) for name, seconds in (("a", 0.8), ("b", 1.3), ("c", 0.6))]
    wanted = [teacher_model.transcribe(model, [waveform])[0] for waveform in waveforms]
    assert [reader.read(torch.from_numpy(waveform)) for waveform in waveforms] == wanted
    plain = CtcReader(TEACHER, device=torch.device("cpu"), normalize=False)
    assert plain.read(torch.zeros(RATE)) == plain.read(torch.zeros(RATE))


def test_only_a_folder_with_a_head_and_a_vocabulary_is_read(teacher_path: Path) -> None:
    assert has_ctc_head(TeacherConfig(path=str(TEACHER)))
    for path in (str(teacher_path), "facebook/hubert-large", "s3://bucket/teacher"):
        assert (
            not has_ctc_head(TeacherConfig(path=path)) and open_ctc_reader(TeacherConfig(path=path)) is None
        )


LOUDNESS = Loudness(utterances=9, rms_dbfs=-25.0, silence_share=0.4, upper_half_db=-20.0)
GOOD = Calibration(
    hours_per_worker_hour=100.0, measured_s=60.0, measured_hours=1.7, warm_up_s=1.0, quantizer_share=0.05,
    peak_memory_bytes=10**9, peak_device_bytes=None, device="cpu", utterances=100, left_out=1, problems=["u1: bad"],
    loudness=LOUDNESS,
    quality=Quality(frames=10_000, rrl=0.12, usage_entropy_bits=[7.0, 7.2], used_codes=[256, 250]),
    teacher_wer=0.1, teacher_wer_utterances=50,
)  # fmt: skip


def record(*, loudness: Loudness | None = LOUDNESS) -> QuantizerRecord:
    data = TrainingData(
        utterances=1, frames=1, valid_utterances=1, valid_frames=1, held_out="speakers", cuts_sha256="", left_out=[],
        loudness=None if loudness is None else asdict(loudness),
    )  # fmt: skip
    return QuantizerRecord(
        id="a", dim=16, num_codebooks=2, codebook_size=256, teacher={}, config={}, settings={}, training_data=data,
        valid_rrl=0.1, usage_entropy_bits=[7.3, 7.3], codebook_correlations=[], history=[], steps=1, seconds=1.0,
    )  # fmt: skip


def with_quality(**changed: Any) -> Calibration:
    assert GOOD.quality is not None
    return replace(GOOD, quality=replace(GOOD.quality, **changed))


def with_loudness(**changed: Any) -> Calibration:
    return replace(GOOD, loudness=replace(LOUDNESS, **changed))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            with_quality(rrl=0.2),
            r"RRL\) is 0.200 here and 0.100 where it was fitted, 2.00 times .*another domain",
        ),
        (with_quality(usage_entropy_bits=[6.0, 5.0]), r"5.50 bits of a code are used here and 7.30"),
        (
            with_loudness(rms_dbfs=-55.0),
            r"at -55 dBFS, that of the fit at -25 dBFS \(quieter by more than 12 dB",
        ),
        (
            with_loudness(upper_half_db=-60.0),
            r"at -60 dB here and at -20 dB .* this audio was sampled at a lower rate",
        ),
        (
            with_loudness(silence_share=0.05),
            r"5% of this audio is silence, 40% .*noise or music lies under it",
        ),
        (with_loudness(silence_share=0.8), r"80% of this audio is silence, 40% of that of the fit"),
        (replace(GOOD, teacher_wer=0.9), r"own word error rate is 90% on 50 utterances \(more than 50%"),
        (replace(GOOD, left_out=30), r"30 of 100 utterances gave no embeddings, such as: u1: bad"),
    ],
)
def test_another_domain_is_told(found: Calibration, words: str) -> None:
    assert warnings_of(GOOD, record()) == []
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(*warnings_of(found, record()))
    assert len(warnings_of(found, record())) == 1


def test_what_is_not_known_is_not_compared() -> None:
    strange = replace(with_loudness(rms_dbfs=-90.0), quality=with_quality(rrl=9.0).quality)
    assert len(warnings_of(strange, record())) == 2
    assert len(warnings_of(strange, record(loudness=None))) == 1
    assert warnings_of(strange, None) == []
    few = with_quality(usage_entropy_bits=[3.0, 3.0], frames=3000)
    assert warnings_of(few, record()) == []
    assert warnings_of(with_quality(rrl=9.0, frames=1000), record()) == []


def test_some_audio_is_measured_however_short_the_time(cuts: list[MonoCut]) -> None:
    found = calibrator(seconds=1e-6).run(cuts)
    assert found.utterances == 6 and found.measured_hours * 3600 == pytest.approx(3.9)


def test_later_passes_change_no_figure_but_the_speed(cuts: list[MonoCut]) -> None:
    first = calibrator(seconds=0.05).run(cuts)
    assert calibrator(seconds=0.3).run(cuts).quality == first.quality
