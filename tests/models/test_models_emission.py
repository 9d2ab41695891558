"""The delay of a streaming student's units is what its segments, right context and chunks make it."""

import pytest
import torch

from mvqkd.models.decoding.emission import EmissionDelay, emission_delay, hear
from mvqkd.models.decoding.streaming import StreamingDecoder, TimedUnit
from mvqkd.models.students.build import build_student
from mvqkd.models.students.encoded import EncodedStudent
from mvqkd.models.students.kinds import EmformerConfig

SEGMENT, RIGHT = 4, 2  # frames of 40 ms
CONFIG = EmformerConfig(
    encoder_dim=16, num_layers=1, num_heads=2, ffn_dim=16, dropout=0.0, loss="ctc", segment_ms=40 * SEGMENT,
    left_context_ms=80, right_context_ms=40 * RIGHT,
)  # fmt: skip


def talkative() -> EncodedStudent:
    """It has learned nothing, but says a lot."""
    torch.manual_seed(1)
    student = build_student(CONFIG, 6)
    assert isinstance(student, EncodedStudent) and isinstance(student.output, torch.nn.Linear)
    student.eval()
    features_TF = student.features(torch.randn(64_000) * 0.1)
    with torch.no_grad():
        encoded_BSD, _ = student.encoder(features_TF.unsqueeze(0), torch.tensor([len(features_TF)]))
        # What is common to all frames says nothing, so that frames differ in what they say.
        student.output.bias.copy_(-(student.output.weight @ encoded_BSD[0].mean(dim=0)))
    return student


def test_a_frame_waits_for_the_rest_of_its_segment_and_the_right_context() -> None:
    student = talkative()
    decoder = StreamingDecoder(student)
    torch.manual_seed(2)
    waveform_T = torch.randn(64_000) * 0.1
    units = hear(decoder, waveform_T, chunk_samples=160)
    assert len(units) > 20
    # The last audio of a frame's 7 mel frames, and of half a window: 30 and 20 ms after its center.
    of_features_s = 0.03 + 0.02
    while_speaking = [unit for unit in units if unit.heard_s < 4.0]
    assert len(while_speaking) > 20
    for unit in while_speaking:
        frame = round((unit.time_s - student.frames.frame_offset_s) * 25)
        later = SEGMENT - 1 - frame % SEGMENT + RIGHT
        assert unit.heard_s - unit.time_s == pytest.approx(later / 25 + of_features_s)
    delay = emission_delay(while_speaking)
    assert delay.longest_s == pytest.approx(student.latency_s)
    assert RIGHT / 25 + of_features_s < delay.mean_s < student.latency_s
    # Where audio ends, nothing is waited for.
    assert all(unit.heard_s == 4.0 for unit in units[len(while_speaking) :])


def test_larger_chunks_add_to_it_and_change_no_unit() -> None:
    decoder = StreamingDecoder(talkative())
    torch.manual_seed(3)
    waveform_T = torch.randn(48_000) * 0.1
    fine, coarse = (hear(decoder, waveform_T, chunk_samples=samples) for samples in (160, 8000))
    assert [(unit.unit, unit.time_s) for unit in fine] == [(unit.unit, unit.time_s) for unit in coarse]
    assert emission_delay(fine).mean_s < emission_delay(coarse).mean_s
    assert emission_delay(coarse).longest_s <= decoder.latency_s + 0.5


def test_figures_of_known_delays() -> None:
    units = [TimedUnit(unit=1, time_s=float(n), heard_s=n + 0.1 * (n + 1)) for n in range(10)]
    delay = emission_delay(units)
    assert delay == EmissionDelay(
        units=10,
        mean_s=pytest.approx(0.55),
        median_s=pytest.approx(0.55),
        p90_s=pytest.approx(0.9),
        longest_s=pytest.approx(1.0),
    )
    spoken_s = [unit.heard_s - 0.2 for unit in units]
    assert emission_delay(units, spoken_s).mean_s == pytest.approx(0.2)
    with pytest.raises(ValueError, match="10 units and 9 times"):
        emission_delay(units, spoken_s[1:])
    with pytest.raises(ValueError, match="no units came out"):
        emission_delay([])
    with pytest.raises(ValueError, match="chunk_samples must be at least 1, not 0"):
        hear(StreamingDecoder(talkative()), torch.zeros(10), chunk_samples=0)
