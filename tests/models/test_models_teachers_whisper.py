"""The Whisper encoder's two windows against transformers."""

import pytest
import torch
import transformers
from models_teachers import LAYERS, make_model, make_waveforms

from mvqkd.models.teachers import UtteranceTooLongError, load_teacher


@pytest.mark.parametrize("num_samples", [1, 5_000, 479_900])
def test_whisper_exact_is_transformers(folders, num_samples):
    waveform = make_waveforms(num_samples)[0]
    model = make_model("whisper")
    extractor = transformers.WhisperFeatureExtractor()
    features = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        states = model.encoder(features, output_hidden_states=True)
    for layer in (1, LAYERS):
        teacher = load_teacher(str(folders["whisper"]), layer=layer, whisper_window="exact")
        mel = teacher._log_mel([waveform], 3_000)
        torch.testing.assert_close(mel, features, rtol=1e-5, atol=1e-5)
        embedding = teacher.encode([waveform])[0]
        if layer == LAYERS:
            with torch.no_grad():
                normed = model.encoder.layer_norm(embedding)
            torch.testing.assert_close(normed, states.last_hidden_state[0, : len(embedding)])
        else:
            torch.testing.assert_close(embedding, states.hidden_states[layer][0, : len(embedding)])


def test_whisper_short_window_reads_the_same_convolutions(folders):
    """The frames of the utterance enter the first layer as in the exact window, its last ones included."""
    short, exact = (load_teacher(str(folders["whisper"]), whisper_window=w) for w in ("short", "exact"))
    with torch.inference_mode():
        for num_samples in (1, 5_000, 6_400, 6_401, 479_000, 480_000):
            waveform = make_waveforms(num_samples)[0]
            (ours,), (log_counts,) = short._front_end([waveform])
            (theirs,), _ = exact._front_end([waveform])
            kept = min(1_500, short.num_frames(num_samples) + 4)
            torch.testing.assert_close(ours[:kept], theirs[:kept], rtol=1e-5, atol=1e-5)
            assert torch.isclose(log_counts.exp().sum(), torch.tensor(1_500.0))
            assert len(ours) < kept + 48


@pytest.mark.parametrize("window", ["short", "exact"])
def test_whisper_front_end_of_a_batch_is_that_of_each(folders, window, convolutions):
    teacher = load_teacher(str(folders["whisper"]), whisper_window=window)
    waveforms = make_waveforms(5_000, 1, 320, 6_401, 479_000 if window == "exact" else 31_000)
    with torch.inference_mode():
        together_BTD, log_counts_BT = teacher._front_end(waveforms)
        for x_TD, log_count_T, waveform in zip(together_BTD, log_counts_BT, waveforms, strict=True):
            (alone_TD,), (expected_T,) = teacher._front_end([waveform])
            rows = len(alone_TD)
            torch.testing.assert_close(x_TD[:rows], alone_TD, rtol=1e-5, atol=1e-5)
            assert torch.equal(log_count_T[:rows], expected_T) and expected_T.isfinite().all()
            assert (log_count_T[rows:] == -torch.inf).all()


@pytest.mark.parametrize("num_samples", [320, 476_480, 478_721, 480_000])
def test_whisper_front_end_beside_a_full_window(folders, num_samples):
    """Where the window ends the spectrogram has no silence to look at, whatever a neighbour has there."""
    teacher = load_teacher(str(folders["whisper"]))
    waveform, longest = make_waveforms(num_samples, 480_000)
    with torch.inference_mode():
        (alone_TD,), (expected_T,) = teacher._front_end([waveform])
        together_BTD, log_counts_BT = teacher._front_end([waveform, longest])
    torch.testing.assert_close(together_BTD[0, : len(alone_TD)], alone_TD, rtol=1e-5, atol=1e-5)
    assert torch.equal(log_counts_BT[0, : len(alone_TD)], expected_T)


def test_whisper_refuses_more_than_its_window(folders):
    teacher = load_teacher(str(folders["whisper"]), layer=1)
    assert (teacher.info.max_samples, teacher.info.frame_offset_s) == (480_000, 0.0)
    with pytest.raises(UtteranceTooLongError, match=r"waveform 1 .*30 s") as caught:
        teacher.encode([torch.zeros(800), torch.zeros(480_001)])
    assert caught.value.index == 1
