"""Tiny random teachers of each architecture."""

import torch
import transformers
from torch import Tensor

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


def wave_extractor() -> transformers.Wav2Vec2FeatureExtractor:
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=True)


def make_waveforms(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    scales = torch.rand(len(lengths), generator=generator) + 0.05
    return [
        scale * torch.randn(length, generator=generator) + 0.1
        for scale, length in zip(scales, lengths, strict=True)
    ]
