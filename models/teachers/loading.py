"""``load_teacher``: from a checkpoint to a teacher that computes up to one layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvqkd.models.teachers.base import DTYPES, Teacher, TeacherInfo
from mvqkd.models.teachers.checkpoint import (
    Checkpoint,
    fingerprint,
    open_checkpoint,
    read_weights,
)
from mvqkd.models.teachers.errors import TeacherLoadError
from mvqkd.models.teachers.families import FAMILIES
from mvqkd.models.teachers.lean import meta_norms, transformers_class
from mvqkd.models.teachers.preprocessor import sample_rate_hz_of
from mvqkd.models.teachers.waveform import WaveformTeacher, receptive_field
from mvqkd.models.teachers.whisper import (
    SILENCE_EDGE_FRAMES,
    SILENCE_STRETCH_FRAMES,
    LogMel,
    WhisperTeacher,
    WhisperWindow,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Part of every fingerprint: to be raised when the computation of embeddings changes on purpose.
_COMPUTATION_VERSION = 1


# The settings that, with the weights' shapes, decide what is computed.
_FINGERPRINT_KEYS = (
    "model_type",
    "conv_kernel",
    "conv_stride",
    "feat_extract_norm",
    "feat_extract_activation",
    "feat_proj_layer_norm",
    "do_stable_layer_norm",
    "conv_pos_batch_norm",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "num_conv_pos_embedding_groups",
    "num_buckets",
    "max_bucket_distance",
    "activation_function",
    "encoder_attention_heads",
    "max_source_positions",
)


def load_teacher(
    path: str,
    *,
    layer: int | None = None,
    layers: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    whisper_window: WhisperWindow = "short",
    normalize: bool | None = None,
    compile: bool = False,
    revision: str | None = None,
) -> Teacher:
    """Load a HuBERT, WavLM, wav2vec2, data2vec-audio or Whisper encoder up to a layer.

    Args:
        path: folder in transformers format (safetensors), also of a model with a head, or a name on the hub.
        layer: the embedding is the hidden state after this many transformer layers, 1 to the checkpoint's
            number, before the model's final layer norm; None is the last. Later layers are not even read.
        layers: in its place, several that may be asked for. The teacher is that of the highest of them.
        device: where to compute.
        dtype: "float32", "float16" (CUDA only) or "bfloat16", the precision of matrix products; norms,
            residual sums and results are float32.
        whisper_window: for Whisper, "short" computes a few frames of silence, "exact" all up to 30 s.
        normalize: zero mean and unit variance for each waveform; None takes it from the checkpoint's
            preprocessor_config.json. Not for Whisper.
        compile: run the layers through torch.compile: slow first batches; results differ by rounding alone.
        revision: branch, tag or commit on the hub.

    Raises:
        TeacherLoadError: the checkpoint is not there, not reachable, incomplete or of another architecture.
        ValueError: an impossible layer, dtype, window or normalization, or both ``layer`` and ``layers``.
    """
    device = torch.device(device)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    if dtype == "float16" and device.type == "cpu":
        raise ValueError("dtype float16 is not for the CPU: choose float32, or bfloat16 where the CPU has it")
    if whisper_window not in ("short", "exact"):
        raise ValueError(f"whisper_window {whisper_window!r} is unknown: choose short or exact")
    checkpoint = open_checkpoint(path, revision)
    architecture = str(checkpoint.config.get("model_type"))
    if architecture not in FAMILIES:
        raise TeacherLoadError(
            f"teacher {path} is a {architecture!r} model: supported are {', '.join(FAMILIES)}"
        )
    config = FAMILIES[architecture].config_class.from_dict(dict(checkpoint.config))
    num_layers = config.encoder_layers if architecture == "whisper" else config.num_hidden_layers
    layers = _checked_layers(layer, layers, num_layers, path)
    load = _load_whisper if architecture == "whisper" else _load_waveform
    return load(
        checkpoint,
        config,
        layers=layers,
        num_layers=num_layers,
        device=device,
        dtype=dtype,
        window=whisper_window,
        normalize=normalize,
        compile=compile,
    )


def _checked_layers(
    layer: int | None, layers: Sequence[int] | None, num_layers: int, path: str
) -> tuple[int, ...]:
    """The layers that were asked for, each once, the highest last."""
    if layer is not None and layers is not None:
        raise ValueError("give layer or layers, not both")
    if layers is None:
        layers = [num_layers if layer is None else layer]
    if not layers:
        raise ValueError("layers is empty: name at least one, or leave it out for the last")
    for each in layers:
        if not 1 <= each <= num_layers:
            raise ValueError(f"layer {each} is not among the layers 1 to {num_layers} of teacher {path}")
    return tuple(sorted(set(layers)))


def _load_waveform(
    checkpoint: Checkpoint,
    config: "PretrainedConfig",
    *,
    layers: tuple[int, ...],
    num_layers: int,
    device: torch.device,
    dtype: str,
    window: WhisperWindow,
    normalize: bool | None,
    compile: bool,
) -> Teacher:
    preprocessor = checkpoint.preprocessor
    if normalize is None:
        if preprocessor is None:
            raise TeacherLoadError(
                f"{checkpoint.name} has no preprocessor_config.json that says whether it wants waveforms"
                " normalized to zero mean and unit variance: add the file or set normalize to true or false"
            )
        normalize = bool(preprocessor.get("do_normalize", True))
    architecture = config.model_type
    config.num_hidden_layers = layers[-1]
    # What follows the encoder or serves only training: masking vector, adapter.
    config.mask_time_prob = config.mask_feature_prob = 0.0
    config.add_adapter = False
    model = _build(architecture, config)
    if getattr(config, "do_stable_layer_norm", False):
        model.encoder.layer_norm = nn.Identity()
    settings = _settings(config, dtype=dtype) | {"normalize": normalize}
    digests = _fill(model, checkpoint, settings, layers)
    field, shift = receptive_field(config.conv_kernel, config.conv_stride)
    sample_rate_hz = sample_rate_hz_of(preprocessor, architecture=architecture, name=checkpoint.name)
    info = TeacherInfo(
        name=checkpoint.name,
        architecture=architecture,
        sample_rate_hz=sample_rate_hz,
        frame_rate_hz=sample_rate_hz / shift,
        frame_shift_samples=shift,
        frame_offset_s=field / 2 / sample_rate_hz,
        dim=config.hidden_size,
        layer=layers[-1],
        num_layers=num_layers,
        dtype=dtype,
        fingerprint=digests[layers[-1]],
        min_samples=field,
        max_samples=None,
    )
    return WaveformTeacher(
        model=model, infos=_infos(info, digests), device=device, normalize=normalize, compile=compile
    )


def _load_whisper(
    checkpoint: Checkpoint,
    config: "PretrainedConfig",
    *,
    layers: tuple[int, ...],
    num_layers: int,
    device: torch.device,
    dtype: str,
    window: WhisperWindow,
    normalize: bool | None,
    compile: bool,
) -> Teacher:
    if normalize:
        raise ValueError(
            "normalize is for teachers that read the waveform; Whisper normalizes its spectrogram"
        )
    preprocessor = dict(checkpoint.preprocessor or {})
    sample_rate_hz_of(preprocessor, architecture="whisper", name=checkpoint.name)
    extractor = transformers_class("models.whisper.feature_extraction_whisper", "WhisperFeatureExtractor")(
        feature_size=config.num_mel_bins,
        **{key: preprocessor[key] for key in ("sampling_rate", "hop_length", "n_fft") if key in preprocessor},
    )
    config.encoder_layers = layers[-1]
    model = _build("whisper", config)
    model.layer_norm = nn.Identity()
    settings = _settings(config, dtype=dtype) | {
        "window": (window, SILENCE_EDGE_FRAMES, SILENCE_STRETCH_FRAMES) if window == "short" else window,
        "sampling_rate": extractor.sampling_rate,
        "hop_length": extractor.hop_length,
        "n_fft": extractor.n_fft,
    }
    digests = _fill(model, checkpoint, settings, layers)
    shift = extractor.hop_length * math.prod(model.conv2.stride)
    info = TeacherInfo(
        name=checkpoint.name,
        architecture="whisper",
        sample_rate_hz=extractor.sampling_rate,
        frame_rate_hz=extractor.sampling_rate / shift,
        frame_shift_samples=shift,
        # The spectrogram's and the convolutions' windows are centered on the frame's first sample.
        frame_offset_s=0.0,
        dim=config.d_model,
        layer=layers[-1],
        num_layers=num_layers,
        dtype=dtype,
        fingerprint=digests[layers[-1]],
        min_samples=1,
        max_samples=config.max_source_positions * shift,
    )
    log_mel = LogMel(
        mel_filters=extractor.mel_filters, n_fft=extractor.n_fft, hop_samples=extractor.hop_length
    )
    return WhisperTeacher(
        model=model,
        infos=_infos(info, digests),
        device=device,
        log_mel=log_mel,
        window=window,
        compile=compile,
    )


def _infos(highest: TeacherInfo, digests: Mapping[int, str]) -> dict[int, TeacherInfo]:
    """What the teacher of each layer says of itself."""
    return {layer: replace(highest, layer=layer, fingerprint=digest) for layer, digest in digests.items()}


def _build(architecture: str, config: "PretrainedConfig") -> "PreTrainedModel":
    """The encoder without memory for its weights."""
    # WavLM has attention of its own, which its teacher replaces.
    config._attn_implementation = "eager" if architecture == "wavlm" else "sdpa"
    model_class = FAMILIES[architecture].model_class
    with torch.device("meta"), meta_norms():
        return model_class(config)


def _fill(
    model: "PreTrainedModel", checkpoint: Checkpoint, settings: Mapping[str, Any], layers: Sequence[int]
) -> dict[int, str]:
    """Give the encoder its weights; returns the fingerprint of the teacher of each layer."""
    family = FAMILIES[settings["model_type"]]
    weights = read_weights(checkpoint, anchor=family.anchor, names=model.state_dict())
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise TeacherLoadError(
            f"{checkpoint.name}: the weights do not fit config.json ({error}): download the checkpoint again"
        ) from error

    def up_to(layer: int) -> dict[str, Tensor]:
        later = tuple(f"{family.layers}{index}." for index in range(layer, layers[-1]))
        return {name: tensor for name, tensor in weights.items() if not name.startswith(later)}

    digests = {layer: fingerprint(up_to(layer), {**settings, "layer": layer}) for layer in layers}
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            # Weight normalization is for training; here it would be computed anew for every batch.
            parametrize.remove_parametrizations(module, "weight")
    return digests


def _settings(config: "PretrainedConfig", *, dtype: str) -> dict[str, Any]:
    """What of the settings is in every fingerprint, to which the layer is added."""
    settings = {key: getattr(config, key) for key in _FINGERPRINT_KEYS if hasattr(config, key)}
    return settings | {"dtype": dtype, "computation": _COMPUTATION_VERSION}
