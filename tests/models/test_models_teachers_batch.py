"""An utterance's embedding does not depend on what else is in its batch."""

import copy

import pytest
import torch
from models_teachers import VARIANTS, make_waveforms
from torch import Tensor

from mvqkd.models.teachers import load_teacher
from mvqkd.models.teachers.base import TransformersTeacher


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
def test_embedding_does_not_depend_on_the_batch(folders, variant):
    window = "exact" if variant == "whisper-exact" else "short"
    teacher = load_teacher(str(folders[variant.removesuffix("-exact")]), whisper_window=window)
    lengths = (5_000, 16_000) if window == "exact" else (5_000, 400, 16_000, 719, 6_160, 5_001)
    waveforms = make_waveforms(*lengths)
    together = teacher.encode(waveforms)
    for waveform, embedding in zip(waveforms, together, strict=True):
        alone = teacher.encode([waveform])[0]
        assert embedding.shape == (teacher.num_frames(len(waveform)), 32)
        scale = max(1.0, float(alone.abs().max()))
        assert (embedding - alone).abs().max() / scale < 1e-5
        assert torch.equal(direct_sum_codes(embedding), direct_sum_codes(alone))
    for first, again in zip(together, teacher.encode(waveforms), strict=True):
        assert torch.equal(first, again)

    # In double precision the difference vanishes: what is left above is rounding only.
    precise = in_double(teacher)
    doubles = [waveform.double() for waveform in waveforms]
    with torch.inference_mode():
        for waveform, embedding in zip(doubles, precise._embed(doubles), strict=True):
            torch.testing.assert_close(embedding, precise._embed([waveform])[0], rtol=1e-11, atol=1e-11)
