"""Log-mel and Kaldi features, and their masks."""

import lhotse
import pytest
import torch
import torchaudio

from mvqkd.models.features import NUM_MEL_BINS, Fbank, LogMel, feature_extractor, spec_augment


def masked(features_TF: torch.Tensor, seed: int = 0, **changes: int) -> torch.Tensor:
    settings = {"time_masks": 2, "max_time_frames": 10, "freq_masks": 2, "max_freq_bins": 20, **changes}
    return spec_augment(features_TF, **settings, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_one_frame_every_ten_milliseconds() -> None:
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    features_TF = LogMel()(noise)
    assert features_TF.shape == (101, NUM_MEL_BINS) and features_TF.dtype == torch.float32
    assert LogMel()(noise[:960]).shape == (7, NUM_MEL_BINS)
    torch.testing.assert_close(features_TF.mean(dim=0), torch.zeros(NUM_MEL_BINS), atol=1e-5, rtol=0)


def test_loudness_does_not_matter_and_silence_is_finite() -> None:
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LogMel()(noise), LogMel()(noise * 0.1), atol=1e-3, rtol=0)
    torch.testing.assert_close(LogMel()(torch.zeros(8000)), torch.zeros(51, NUM_MEL_BINS), atol=1e-5, rtol=0)


def test_frame_lies_where_its_sound_is() -> None:
    waveform = 0.001 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    waveform[160 * 40] += 1.0
    assert int(LogMel()(waveform).mean(dim=1).argmax()) == 40


def test_masks_are_stripes_of_zeros_in_a_copy() -> None:
    features_TF = torch.ones(100, NUM_MEL_BINS)
    seen_time, seen_freq = set(), set()
    for seed in range(40):
        out_TF = masked(features_TF, seed)
        hidden_TF = out_TF == 0
        seen_time.add(int(hidden_TF.all(dim=1).sum()))
        seen_freq.add(int(hidden_TF.all(dim=0).sum()))
        assert set(out_TF.unique().tolist()) <= {0.0, 1.0}
    assert max(seen_time) <= 20 and max(seen_freq) <= 40 and len(seen_time) > 8 and len(seen_freq) > 8
    assert torch.equal(features_TF, torch.ones(100, NUM_MEL_BINS))
    assert torch.equal(masked(features_TF, 7), masked(features_TF, 7))
    assert torch.equal(masked(features_TF, time_masks=0, freq_masks=0), features_TF)


def test_short_utterances_keep_three_quarters_of_each_mask() -> None:
    for seed in range(20):
        out_TF = masked(torch.ones(8, NUM_MEL_BINS), seed, time_masks=1, freq_masks=0, max_time_frames=100)
        assert int((out_TF == 0).all(dim=1).sum()) <= 2
        masked(torch.ones(1, NUM_MEL_BINS), seed)


def test_at_16_khz_it_is_what_students_of_before_were_trained_on() -> None:
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80
    )
    log_TF = mel(noise).clamp_min(1e-7).log().T
    assert torch.equal(LogMel()(noise), (log_TF - log_TF.mean(dim=0)) / 4.0)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_other_rates_have_the_same_windows_and_hops(rate_hz: int) -> None:
    log_mel = LogMel(rate_hz)
    assert (log_mel.mel.win_length, log_mel.mel.hop_length) == (round(rate_hz / 40), rate_hz // 100)
    assert log_mel.mel.n_fft >= log_mel.mel.win_length > log_mel.mel.n_fft // 2
    assert bool((log_mel.mel.mel_scale.fb.sum(dim=0) > 0).all()), "every bin hears something"
    waveform = 0.001 * torch.randn(rate_hz, generator=torch.Generator().manual_seed(0))
    waveform[rate_hz * 40 // 100] += 1.0
    features_TF = log_mel(waveform)
    assert features_TF.shape == (101, 80) and int(features_TF.mean(dim=1).argmax()) == 40


def test_a_tone_lies_at_its_frequency_at_any_rate() -> None:
    """1 kHz; the bins go up to half the rate, evenly in mel."""
    for rate_hz in (8_000, 16_000):
        tone = torch.sin(2 * torch.pi * 1000 * torch.arange(rate_hz) / rate_hz)
        noise = 0.01 * torch.randn(rate_hz, generator=torch.Generator().manual_seed(0))
        log_mel = LogMel(rate_hz)
        raw_TF = log_mel.mel(tone + noise).T
        top = 2595 * torch.log10(torch.tensor(1 + rate_hz / 2 / 700))
        expected = 2595 * torch.log10(torch.tensor(1 + 1000 / 700)) / top * 81 - 1
        assert abs(int(raw_TF.mean(dim=0).argmax()) - float(expected)) <= 1


@pytest.mark.parametrize("rate_hz", [0, 4_000, 7_900, 11_025, 22_050])
def test_rates_that_give_no_whole_hop_or_hardly_any_speech(rate_hz: int) -> None:
    with pytest.raises(ValueError, match=f"sample_rate_hz {rate_hz} gives no mel frames every 10 ms"):
        LogMel(rate_hz)


def test_no_mask_of_frequencies_covers_all_of_a_frame() -> None:
    """Where a frame is one sample of a waveform, a mask of frequencies would be silence."""
    generator = torch.Generator().manual_seed(0)
    for bins in (1, 3):
        features_TF = torch.ones(50, bins)
        for _ in range(20):
            masked_TF = spec_augment(
                features_TF,
                time_masks=0,
                max_time_frames=0,
                freq_masks=1,
                max_freq_bins=20,
                generator=generator,
            )
            assert masked_TF.any(dim=1).all()


@pytest.mark.parametrize("num_samples", [1039, 1040, 1199, 1200, 15_999, 16_079, 16_080, 48_123])
def test_fbank_is_lhotses(num_samples: int) -> None:
    """And so icefall's; sherpa-onnx has the same options."""
    waveform = 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(num_samples))
    waveform[: num_samples // 3] = 0.0
    theirs = torch.from_numpy(lhotse.Fbank().extract(waveform.numpy(), 16_000))
    ours = Fbank()(waveform)
    assert ours.dtype == torch.float32 and len(ours) == (num_samples + 80) // 160
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert float((ours - theirs).abs().mean()) < 1e-5


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_frames_of_fbank_lie_five_milliseconds_later(rate_hz: int) -> None:
    for frame in (0, 40):
        waveform = 0.001 * torch.randn(rate_hz, generator=torch.Generator().manual_seed(0))
        waveform[round((0.005 + 0.01 * frame) * rate_hz)] += 1.0
        features_TF = Fbank(rate_hz)(waveform)
        assert features_TF.shape == (100, 80) and features_TF.isfinite().all()
        heard = features_TF.mean(dim=1)
        assert int(heard.argmax()) == frame
        # In the middle of its frame it is as loud in the one before as in the one after.
        assert frame == 0 or abs(float(heard[frame - 1] - heard[frame + 1])) < 0.5


def test_kinds_of_features_and_what_masks_are() -> None:
    assert isinstance(feature_extractor("fbank", 16_000), Fbank)
    assert isinstance(feature_extractor("log_mel", 8_000), LogMel)
    with pytest.raises(ValueError, match="sample_rate_hz 11025"):
        feature_extractor("fbank", 11_025)
    out_TF = spec_augment(
        torch.ones(100, NUM_MEL_BINS), time_masks=2, max_time_frames=10, freq_masks=0, max_freq_bins=0, fill=-8.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert set(out_TF.unique().tolist()) == {-8.0, 1.0}
