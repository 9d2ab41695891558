"""Teachers on tiny random models of each architecture: layers, batch independence, refusals."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from mvqkd.models.teachers import (
    NonFiniteEmbeddingError,
    UtteranceTooLongError,
    UtteranceTooShortError,
    WaveformError,
    load_teacher,
)
from mvqkd.models.teachers.base import TransformersTeacher

LAYERS = 3
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    # Larger than usual, so that every part contributes visibly to the embeddings.
    "initializer_range": 0.2,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
VARIANTS = {
    "hubert-base": ("Hubert", {}),
    "hubert-large": ("Hubert", STABLE),
    "hubert-batch-norm": ("Hubert", {"conv_pos_batch_norm": True}),
    "wavlm-base": ("WavLM", {}),
    "wavlm-large": ("WavLM", STABLE),
    "wav2vec2-base": ("Wav2Vec2", {}),
    "wav2vec2-large": ("Wav2Vec2", STABLE),
    "data2vec": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 6}),
    "data2vec-odd": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}),
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "vocab_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "init_std": 0.2,
}


def make_model(variant: str) -> torch.nn.Module:
    torch.manual_seed(1)
    if variant.startswith("whisper"):
        return transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)).eval()
    name, changes = VARIANTS[variant]
    config = getattr(transformers, f"{name}Config")(**(SIZES | changes))
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    if variant == "hubert-batch-norm":
        model.encoder.pos_conv_embed.batch_norm.running_mean.normal_()
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for variant in [*VARIANTS, "whisper"]:
        folders[variant] = tmp_path_factory.mktemp("teachers") / variant
        make_model(variant).save_pretrained(folders[variant])
        extractor = transformers.WhisperFeatureExtractor() if variant == "whisper" else wave_extractor()
        extractor.save_pretrained(folders[variant])
    return folders


def wave_extractor() -> transformers.Wav2Vec2FeatureExtractor:
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=True)


def make_waveforms(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    scales = torch.rand(len(lengths), generator=generator) + 0.05
    return [
        scale * torch.randn(length, generator=generator) + 0.1
        for scale, length in zip(scales, lengths, strict=True)
    ]


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
def test_layer_is_transformers_hidden_state(folders, variant):
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


@pytest.mark.parametrize("variant", ["hubert-base", "hubert-large", "data2vec", "whisper"])
def test_bfloat16_is_near_float32(folders, variant):
    waveform = make_waveforms(6_000)
    exact = load_teacher(str(folders[variant])).encode(waveform)[0]
    rough = load_teacher(str(folders[variant]), dtype="bfloat16").encode(waveform)[0]
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).square().sum() / exact.square().sum() < 0.01


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
    assert embedding.untyped_storage().nbytes() == embedding.numel() * 4


def test_frames_of_short_inputs(folders):
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    assert [teacher.num_frames(n) for n in (0, 9, 399, 400, 719, 720)] == [0, 0, 0, 1, 1, 2]
    whisper = load_teacher(str(folders["whisper"]), layer=1)
    assert [whisper.num_frames(n) for n in (0, 1, 320, 321, 480_000)] == [0, 1, 1, 2, 1500]


def test_non_finite_embeddings_leave_the_others(folders, monkeypatch):
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    waveforms = make_waveforms(800, 1_600, 900)
    embed = teacher._embed

    def overflow(batch: list[Tensor]) -> list[Tensor]:
        results = embed(batch)
        results[1][0, 0] = torch.inf
        return results

    monkeypatch.setattr(teacher, "_embed", overflow)
    with pytest.raises(NonFiniteEmbeddingError, match=r"waveforms \[1\]") as caught:
        teacher.encode(waveforms)
    assert caught.value.indexes == (1,)
    assert [x is None for x in caught.value.embeddings] == [False, True, False]


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
        mel = teacher._log_mel(waveform, 3_000)
        torch.testing.assert_close(mel, features[0], rtol=1e-5, atol=1e-5)
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
            ours, log_counts = short._front_end(waveform)
            theirs, _ = exact._front_end(waveform)
            kept = min(1_500, short.num_frames(num_samples) + 4)
            torch.testing.assert_close(ours[:kept], theirs[:kept], rtol=1e-5, atol=1e-5)
            assert torch.isclose(log_counts.exp().sum(), torch.tensor(1_500.0))
            assert len(ours) < kept + 48


def test_whisper_refuses_more_than_its_window(folders):
    teacher = load_teacher(str(folders["whisper"]), layer=1)
    assert (teacher.info.max_samples, teacher.info.frame_offset_s) == (480_000, 0.0)
    with pytest.raises(UtteranceTooLongError, match=r"waveform 1 .*30 s") as caught:
        teacher.encode([torch.zeros(800), torch.zeros(480_001)])
    assert caught.value.index == 1


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_products_are_not_rounded_to_tf32(folders, monkeypatch, precision):
    """Whatever the process allows, and it is put back afterwards."""
    matmul = torch.backends.cuda.matmul
    teacher = load_teacher(str(folders["hubert-base"]), layer=1)
    seen = []
    real = teacher._embed
    monkeypatch.setattr(teacher, "_embed", lambda batch: seen.append(matmul.fp32_precision) or real(batch))
    allowed = matmul.fp32_precision
    try:
        matmul.fp32_precision = precision
        teacher.encode(make_waveforms(800))
        assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = allowed
    assert seen == ["ieee"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variant", [*VARIANTS, "whisper"])
def test_cuda_agrees_with_cpu(folders, variant):
    waveforms = make_waveforms(5_000, 400, 16_000)
    cpu, cuda = (load_teacher(str(folders[variant]), device=device) for device in ("cpu", "cuda"))
    assert cpu.info == cuda.info
    half = load_teacher(str(folders[variant]), device="cuda", dtype="float16").encode(waveforms)
    for expected, found, rough in zip(cpu.encode(waveforms), cuda.encode(waveforms), half, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
        assert (rough.cpu() - expected).square().sum() / expected.square().sum() < 0.01
