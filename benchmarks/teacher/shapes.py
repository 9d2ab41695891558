"""Teachers of well-known shapes with random weights: the speed is that of the trained ones.

Shape suffixes: none.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    HubertConfig,
    HubertModel,
    PretrainedConfig,
    PreTrainedModel,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mvqkd.models.teachers.base import TeacherInfo, TransformersTeacher
from mvqkd.models.teachers.products import Convolutions
from mvqkd.models.teachers.waveform import WaveformTeacher, receptive_field
from mvqkd.models.teachers.whisper import LogMel, WhisperTeacher

RATE_HZ = 16_000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape: the configuration of its checkpoint, the layers it has, and the layer it is stopped at."""

    architecture: Literal["hubert", "wavlm", "whisper"]
    settings: dict[str, Any]
    num_layers: int
    layer: int


def _large_waveform(dim: int, inner: int) -> dict[str, Any]:
    return {
        "hidden_size": dim,
        "intermediate_size": inner,
        "num_attention_heads": 16,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    }


def _whisper(dim: int, heads: int) -> dict[str, Any]:
    return {"d_model": dim, "encoder_attention_heads": heads, "encoder_ffn_dim": 4 * dim}


_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "conv_dim": [32] * 7}
_TINY |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SHAPES = {
    # As facebook/hubert-xlarge-ll60k; the paper of MVQ-KD takes layer 36.
    "hubert-xlarge": Shape(
        architecture="hubert",
        settings=_large_waveform(1280, 5120) | {"conv_bias": True},
        num_layers=48,
        layer=36,
    ),
    "wavlm-large": Shape(architecture="wavlm", settings=_large_waveform(1024, 4096), num_layers=24, layer=24),
    "whisper-base": Shape(architecture="whisper", settings=_whisper(512, 8), num_layers=6, layer=6),
    "whisper-large": Shape(
        architecture="whisper", settings=_whisper(1280, 20) | {"num_mel_bins": 128}, num_layers=32, layer=32
    ),
    "tiny": Shape(
        architecture="hubert",
        settings=_TINY | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
        num_layers=3,
        layer=2,
    ),
}
"""`tiny` is for trying the benchmark itself."""

_MODELS: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
    "whisper": (WhisperConfig, WhisperEncoder),
}


def random_model(shape: Shape, device: torch.device) -> PreTrainedModel:
    """transformers' encoder up to the layer, float32, its weights drawn on the device from a fixed seed."""
    config_class, model_class = _MODELS[shape.architecture]
    key = "encoder_layers" if shape.architecture == "whisper" else "num_hidden_layers"
    config = config_class(**shape.settings, **{key: shape.layer})
    config._attn_implementation = "eager" if shape.architecture == "wavlm" else "sdpa"
    torch.manual_seed(0)
    with torch.device(device):
        return model_class(config).eval().requires_grad_(False)


def random_teacher(
    shape: Shape,
    device: torch.device,
    dtype: str,
    *,
    compile: bool,
    convolutions: Convolutions | None = None,
) -> TransformersTeacher:
    """Our teacher around such a model; how convolutions are computed is the device's choice where it is not given."""
    model = random_model(shape, device)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    whisper = shape.architecture == "whisper"
    config: Any = model.config
    if not whisper:
        field, shift = receptive_field(config.conv_kernel, config.conv_stride)
    info = TeacherInfo(
        name="random",
        architecture=shape.architecture,
        sample_rate_hz=RATE_HZ,
        frame_rate_hz=50.0,
        frame_shift_samples=320 if whisper else shift,
        frame_offset_s=0.0,
        dim=config.d_model if whisper else config.hidden_size,
        layer=shape.layer,
        num_layers=shape.num_layers,
        dtype=dtype,
        fingerprint="0" * 16,
        min_samples=1 if whisper else field,
        max_samples=480_000 if whisper else None,
    )
    infos = {shape.layer: info}
    if not whisper:
        model.encoder.layer_norm = nn.Identity()
        return WaveformTeacher(
            model=model,
            infos=infos,
            device=device,
            normalize=True,
            compile=compile,
            convolutions=convolutions,
        )
    model.layer_norm = nn.Identity()
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    log_mel = LogMel(
        mel_filters=extractor.mel_filters, n_fft=extractor.n_fft, hop_samples=extractor.hop_length
    )
    return WhisperTeacher(
        model=model,
        infos=infos,
        device=device,
        log_mel=log_mel,
        window="short",
        compile=compile,
        convolutions=convolutions,
    )


def parts_of(teacher: TransformersTeacher, shape: Shape) -> dict[str, list[nn.Module]]:
    """The modules of each part of a teacher."""
    model: Any = teacher._model
    if shape.architecture == "whisper":
        convolutions = [model.products] if hasattr(model, "products") else [model.conv1, model.conv2]
        return {"front_end": convolutions, "layers": list(model.layers)}
    return {
        "front_end": [model.feature_extractor, model.feature_projection],
        "positions": list(model.encoder.pos_conv_embed),
        "layers": list(model.encoder.layers),
    }


def operations(shape: Shape, num_samples: int) -> float:
    """Floating-point operations of the matrix products and convolutions for one utterance alone.

    A multiplication and an addition are two. Norms, activations, softmax and spectrograms are left out; so is
    Whisper's silence.
    """
    whisper = shape.architecture == "whisper"
    config: Any = _MODELS[shape.architecture][0](**shape.settings)
    if whisper:
        dim, inner, frames = config.d_model, config.encoder_ffn_dim, math.ceil(num_samples / 320)
        total = 2.0 * 3 * dim * (config.num_mel_bins * 2 * frames + dim * frames)
    else:
        dim, inner = config.hidden_size, config.intermediate_size
        total, channels, frames = 0.0, 1, num_samples
        sizes = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        for width, kernel, stride in sizes:
            frames = (frames - kernel) // stride + 1
            total += 2.0 * channels * width * kernel * frames
            channels = width
        total += 2.0 * channels * dim * frames
        # Padding of half a kernel on both sides gives an even kernel one frame more, which is dropped.
        per_frame = 2.0 * dim * (dim // config.num_conv_pos_embedding_groups) * config.num_conv_pos_embeddings
        total += per_frame * (frames + 1 - config.num_conv_pos_embeddings % 2)
    per_layer = frames * (8.0 * dim * dim + 4.0 * dim * inner) + 4.0 * frames * frames * dim
    return total + shape.layer * per_layer
