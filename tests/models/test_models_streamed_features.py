"""Features of audio that comes in chunks are those of the whole."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mvqkd.models.features import LogMel
from mvqkd.models.streamed_features import PRIOR_FRAMES, PRIOR_MEAN, StreamableLogMel


def noise(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Louder as it goes on, so that the mean moves.
    return torch.randn(samples, generator=generator) * torch.linspace(0.001, 0.3, samples)


def cuts_of(samples: int, lengths: list[int]) -> list[int]:
    """Where chunks of these lengths, over and over, end."""
    ends, number = [0], 0
    while ends[-1] < samples:
        ends.append(min(samples, ends[-1] + lengths[number % len(lengths)]))
        number += 1
    return ends


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_000, 48_000])
@pytest.mark.parametrize("lengths", [[1], [160], [159, 1, 700], [10_000], [10**6]])
def test_chunks_are_the_whole(rate_hz: int, lengths: list[int]) -> None:
    log_mel = StreamableLogMel(rate_hz)
    samples = 3000 if lengths == [1] else 3 * rate_hz + 77
    waveform_T = noise(samples)
    whole_TF = log_mel(waveform_T)
    assert whole_TF.shape == (samples // log_mel.hop_samples + 1, 80)
    stream = log_mel.stream()
    parts = [stream.feed(waveform_T[start:end]) for start, end in pairwise(cuts_of(samples, lengths))]
    streamed_TF = torch.cat([*parts, stream.finish()])
    torch.testing.assert_close(streamed_TF, whole_TF, atol=2e-5, rtol=1e-5)


def test_a_frame_comes_out_as_soon_as_its_window_is_there() -> None:
    log_mel = StreamableLogMel(16_000)
    assert log_mel.latency_s == 0.02
    stream, waveform_T = log_mel.stream(), noise(1600)
    out, seen = 0, []
    for start in range(0, 1600, 10):
        frames = len(stream.feed(waveform_T[start : start + 10]))
        seen += [(start + 10) / 16_000 - (out + n) * 0.01 for n in range(frames)]
        out += frames
    assert seen == pytest.approx([0.02] * len(seen)) and len(seen) == 9
    assert len(stream.finish()) == 2


def test_too_little_audio_has_no_frames() -> None:
    stream = StreamableLogMel(16_000).stream()
    assert stream.finish().shape == (0, 80)
    assert stream.feed(noise(200)).shape == stream.finish().shape == (0, 80)


def test_what_comes_later_changes_nothing() -> None:
    log_mel, waveform_T = StreamableLogMel(), noise(16_000)
    changed_T = waveform_T.clone()
    changed_T[8000:] += 1
    before, after = log_mel(waveform_T), log_mel(changed_T)
    assert torch.equal(before[:48], after[:48]) and not torch.allclose(before[52:], after[52:])
    usual = LogMel()
    assert not torch.allclose(usual(waveform_T)[:48], usual(changed_T)[:48])


def test_the_mean_is_that_of_speech_and_then_of_the_audio() -> None:
    log_mel, waveform_T = StreamableLogMel(), 0.1 * torch.ones(160_000)
    raw_TF, out_TF = log_mel.frames(waveform_T), log_mel(waveform_T)
    mean_F = (PRIOR_MEAN * PRIOR_FRAMES + raw_TF[:50].sum(dim=0)) / (PRIOR_FRAMES + 50)
    torch.testing.assert_close(out_TF[49], (raw_TF[49] - mean_F) / 4, atol=1e-4, rtol=1e-4)
