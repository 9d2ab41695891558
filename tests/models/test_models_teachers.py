"""Teachers on tiny random models of each architecture: layers, precision, refusals."""

import pytest
import torch
from models_teachers import LAYERS, VARIANTS, make_model, make_waveforms, wave_extractor
from torch import Tensor

from mvqkd.models.teachers import (
    NonFiniteEmbeddingError,
    UtteranceTooShortError,
    WaveformError,
    load_teacher,
)


def reference_states(model: torch.nn.Module, waveform: Tensor) -> list[Tensor]:
    """transformers' own states ``(T, dim)`` after each layer, seen by hooks, before any final norm."""
    states: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        states.append((output if isinstance(output, Tensor) else output[0])[0])

    inputs = wave_extractor()(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    hooks = [layer.register_forward_hook(keep) for layer in model.encoder.layers]
    with torch.no_grad():
        output = model(inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    for ours, theirs in zip(states[:-1], output.hidden_states[1:], strict=False):
        torch.testing.assert_close(ours, theirs[0], rtol=0, atol=0)
    return states


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_is_transformers_hidden_state(folders, variant, convolutions):
    waveform = make_waveforms(6_000)[0]
    states = reference_states(make_model(variant), waveform)
    for layer in (1, LAYERS):
        teacher = load_teacher(str(folders[variant]), layer=layer)
        embedding = teacher.encode([waveform])[0]
        torch.testing.assert_close(embedding, states[layer - 1], rtol=1e-5, atol=2e-5)
        assert teacher.info.layer == layer and teacher.info.num_layers == LAYERS
        assert teacher.num_frames(6_000) == len(embedding)


@pytest.mark.parametrize("variant", ["hubert-large", "wavlm-large", "wav2vec2-large"])
def test_final_layer_norm_is_skipped(folders, variant):
    waveform = make_waveforms(6_000)[0]
    model = make_model(variant)
    inputs = wave_extractor()(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        normed = model(inputs).last_hidden_state[0]
        embedding = load_teacher(str(folders[variant])).encode([waveform])[0]
        assert (embedding - normed).abs().max() > 0.1
        torch.testing.assert_close(model.encoder.layer_norm(embedding), normed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["hubert-base", "hubert-large", "data2vec", "whisper"])
def test_bfloat16_is_near_float32(folders, variant, convolutions):
    waveform = make_waveforms(6_000)
    exact = load_teacher(str(folders[variant])).encode(waveform)[0]
    rough = load_teacher(str(folders[variant]), dtype="bfloat16").encode(waveform)[0]
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).square().sum() / exact.square().sum() < 0.01


@pytest.mark.parametrize("variant", ["hubert-base", "hubert-batch-norm", "data2vec", "whisper"])
def test_convolutions_on_the_cpu_are_float32(folders, variant):
    """CPUs with AMX compute some of them wrongly in bfloat16: up to a third off, without an error."""
    teacher = load_teacher(str(folders[variant]), dtype="bfloat16")
    seen = []
    for module in teacher._model.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_hook(lambda module, x, y: seen.append((module.weight.dtype, y.dtype)))
    teacher.encode(make_waveforms(6_000))
    assert len(seen) >= 2 and set(seen) == {(torch.float32, torch.float32)}
    linear = [module for module in teacher._model.modules() if isinstance(module, torch.nn.Linear)]
    assert {module.weight.dtype for module in linear} == {torch.bfloat16}


def test_normalization_follows_the_checkpoint_unless_told(folders):
    path = str(folders["hubert-large"])
    quiet = make_waveforms(6_000)[0]
    loud = 3 * quiet + 0.5
    normalizing, plain = load_teacher(path), load_teacher(path, normalize=False)
    torch.testing.assert_close(*normalizing.encode([quiet, loud]), rtol=1e-3, atol=1e-3)
    first, second = plain.encode([quiet, loud])
    assert (first - second).abs().max() > 0.1
    assert normalizing.info.fingerprint != plain.info.fingerprint


def test_info_of_waveform_teacher(folders):
    info = load_teacher(str(folders["hubert-base"]), layer=2).info
    assert (info.name, info.architecture, info.dtype) == ("hubert-base", "hubert", "float32")
    assert (info.sample_rate_hz, info.frame_rate_hz, info.frame_shift_samples) == (16_000, 50.0, 320)
    assert (info.frame_offset_s, info.dim, info.min_samples, info.max_samples) == (0.0125, 32, 400, None)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(399), UtteranceTooShortError, "waveform 1 has 399 samples"),
        (torch.zeros(0), UtteranceTooShortError, "waveform 1 has 0 samples"),
        (torch.full((800,), torch.nan), WaveformError, "waveform 1 holds NaN"),
        (torch.full((800,), torch.inf), WaveformError, "waveform 1 holds NaN or infinity"),
        (torch.zeros(2, 800), WaveformError, r"waveform 1 is torch.float32 \(2, 800\)"),
        (torch.zeros(800, dtype=torch.float64), WaveformError, "waveform 1 is torch.float64"),
        ([0.0] * 800, WaveformError, "waveform 1 is list"),
    ],
)
def test_bad_waveforms_are_named(folders, bad, error, message):
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    with pytest.raises(error, match=message) as caught:
        teacher.encode([*make_waveforms(800), bad])
    assert caught.value.index == 1


def test_empty_batch_and_silence(folders):
    for variant in ("hubert-base", "whisper"):
        teacher = load_teacher(str(folders[variant]))
        assert teacher.encode([]) == []
        assert teacher.encode([torch.zeros(800)])[0].isfinite().all()


def test_embeddings_can_be_trained_on(folders):
    embedding = load_teacher(str(folders["hubert-base"]), layer=1).encode(make_waveforms(800))[0]
    assert not embedding.requires_grad and not embedding.is_inference()
    # The padded states and the audio are let go.
    assert embedding.untyped_storage().nbytes() == embedding.numel() * 4


def test_frames_of_short_inputs(folders):
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    assert [teacher.num_frames(n) for n in (0, 9, 399, 400, 719, 720)] == [0, 0, 0, 1, 1, 2]
    whisper = load_teacher(str(folders["whisper"]), layer=1)
    assert [whisper.num_frames(n) for n in (0, 1, 320, 321, 480_000)] == [0, 1, 1, 2, 1500]


def test_non_finite_embeddings_leave_the_others(folders, monkeypatch):
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    waveforms = make_waveforms(800, 1_600, 900)
    compute = teacher._states

    def overflow(*arguments) -> list[Tensor]:
        states = compute(*arguments)
        states[0][1, 0, 0] = torch.inf
        # Beyond the end of the shortest, where nobody looks.
        states[0][0, -1, 0] = torch.nan
        return states

    monkeypatch.setattr(teacher, "_states", overflow)
    with pytest.raises(NonFiniteEmbeddingError, match=r"waveforms \[1\]") as caught:
        teacher.encode(waveforms)
    assert caught.value.indexes == (1,)
    assert [x is None for x in caught.value.embeddings] == [False, True, False]


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_products_are_not_rounded_to_tf32(folders, monkeypatch, precision):
    """Whatever the process allows, and it is put back afterwards."""
    matmul = torch.backends.cuda.matmul
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    seen = []
    real = teacher._states
    monkeypatch.setattr(teacher, "_states", lambda *a: seen.append(matmul.fp32_precision) or real(*a))
    allowed = matmul.fp32_precision
    try:
        matmul.fp32_precision = precision
        teacher.encode(make_waveforms(800))
        assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = allowed
    assert seen == ["ieee"]
