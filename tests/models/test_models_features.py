"""Log-mel features and their masks."""

import torch

from mvqkd.models.features import NUM_MEL_BINS, LogMel, spec_augment


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
