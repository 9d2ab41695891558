"""An utterance's embedding does not depend on what else is in its batch."""

import copy

import pytest
import torch
from models_teachers import LAYERS, VARIANTS, make_waveforms
from torch import Tensor

from mvqkd.models.teachers import load_teacher, products, waveform
from mvqkd.models.teachers.base import TransformersTeacher
from mvqkd.models.teachers.batch import gather_audio


def direct_sum_codes(x_TD: Tensor) -> Tensor:
    """Codes ``(T, 4)`` of a fixed random direct-sum quantizer with greedy residual search."""
    generator = torch.Generator().manual_seed(3)
    codes = []
    for _ in range(4):
        centers_KD = torch.randn(256, x_TD.shape[1], generator=generator)
        code_T = torch.cdist(x_TD, centers_KD).argmin(dim=1)
        x_TD = x_TD - centers_KD[code_T]
        codes.append(code_T)
    return torch.stack(codes, dim=1)


def in_double(teacher: TransformersTeacher) -> TransformersTeacher:
    teacher = copy.deepcopy(teacher)
    teacher._model.double()
    if hasattr(teacher, "_log_mel"):
        teacher._log_mel.double()
    return teacher


@pytest.mark.parametrize("variant", [*VARIANTS, "whisper", "whisper-exact"])
def test_embedding_does_not_depend_on_the_batch(folders, variant, convolutions):
    window = "exact" if variant == "whisper-exact" else "short"
    teacher = load_teacher(str(folders[variant.removesuffix("-exact")]), whisper_window=window)
    lengths = (5_000, 16_000) if window == "exact" else (5_000, 400, 16_000, 719, 6_160, 5_001)
    waveforms = make_waveforms(*lengths)
    together = teacher.encode(waveforms)
    for audio, embedding in zip(waveforms, together, strict=True):
        alone = teacher.encode([audio])[0]
        assert embedding.shape == (teacher.num_frames(len(audio)), 32)
        scale = max(1.0, float(alone.abs().max()))
        assert (embedding - alone).abs().max() / scale < 1e-5
        assert torch.equal(direct_sum_codes(embedding), direct_sum_codes(alone))
    for first, again in zip(together, teacher.encode(waveforms), strict=True):
        assert torch.equal(first, again)

    # In double precision the difference vanishes: what is left above is rounding only.
    precise = in_double(teacher)
    doubles = [audio.double() for audio in waveforms]
    together = states_of(precise, doubles)
    for audio, embedding in zip(doubles, together, strict=True):
        torch.testing.assert_close(embedding, states_of(precise, [audio])[0], rtol=1e-11, atol=1e-11)


def states_of(teacher: TransformersTeacher, waveforms: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        audio = gather_audio(waveforms, torch.device("cpu"), multiple=teacher.info.frame_shift_samples)
        (states_BTD,) = teacher._states(audio, [LAYERS])
    return [x[: teacher.num_frames(len(w))] for x, w in zip(states_BTD, waveforms, strict=True)]


@pytest.mark.parametrize("variant", ["hubert-large", "wavlm-large", "data2vec"])
@pytest.mark.parametrize("frames_at_once", [1, 7, 10_000])
def test_joined_front_end_is_that_of_each_utterance(folders, monkeypatch, variant, frames_at_once):
    """Whatever the pieces are that the joined audio is computed in."""
    monkeypatch.setitem(waveform._FRAMES_AT_ONCE, "cpu", frames_at_once)
    teacher = load_teacher(str(folders[variant]), layer=1)
    waveforms = make_waveforms(5_000, 400, 719, 6_160, 5_001)
    with torch.inference_mode():
        audio = gather_audio(waveforms, torch.device("cpu"), multiple=320)
        assert teacher._joined
        found = teacher._front_end(audio)
        for features_TD, own in zip(found, waveforms, strict=True):
            torch.testing.assert_close(features_TD, teacher._features(own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seconds_at_once", [0, 0.5, 100])
def test_group_norm_front_end_sees_one_utterance(folders, monkeypatch, seconds_at_once, convolutions):
    """However many are computed together as products."""
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    assert not teacher._joined
    monkeypatch.setattr(teacher, "_frames_at_once", lambda: round(50 * seconds_at_once))
    waveforms = make_waveforms(5_000, 400, 719, 6_160, 5_001)
    with torch.inference_mode():
        found = teacher._front_end(gather_audio(waveforms, torch.device("cpu"), multiple=320))
        for features_TD, own in zip(found, waveforms, strict=True):
            expected = teacher._features(own, [(0, len(own))])
            torch.testing.assert_close(features_TD, expected, rtol=1e-5, atol=1e-5)


def test_front_end_in_pieces_of_memory(folders, monkeypatch):
    monkeypatch.setitem(products.CONVOLUTIONS, "cpu", "products")
    teacher = load_teacher(str(folders["hubert-large"]), layer=1)
    # 64 outputs of the first convolution to a frame, 16 channels of 4 bytes, once as they come and once normed.
    assert teacher._frames_at_once() == 2**30 // (2 * 64 * 16 * 4)
    waveforms = make_waveforms(5_000, 400, 719)
    expected = teacher.encode(waveforms)
    monkeypatch.setattr(waveform, "_BYTES_AT_ONCE", 5 * 2 * 64 * 16 * 4)
    assert teacher._frames_at_once() == 5
    for ours, theirs in zip(teacher.encode(waveforms), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
