"""The demo's teacher: a small `Wav2Vec2ForCTC` of transformers over characters, and how it is kept.

Written with transformers' own classes, so that the product's teacher loader needs no special case for it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from demo.voices import SAMPLE_RATE_HZ

BLANK = 0
# The CTC blank first, then the word boundary, then letters: the order of vocab.json.
VOCABULARY = ("<pad>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "<unk>")
_INDEX = {symbol: index for index, symbol in enumerate(VOCABULARY)}
_WINDOW, _HOP, _BANDS = 256, 160, 40


def new_teacher(seed: int) -> Wav2Vec2ForCTC:
    """An untrained teacher of 1.7 million parameters with 50 frames a second (total stride 320 samples).

    Two convolutions only: seven of them at 16 kHz, as in the original, cost more on a CPU than the
    transformer. No dropout, since no utterance is heard twice.
    """
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        pad_token_id=BLANK,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=160,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=640,
        conv_dim=(4 * _BANDS, 160),
        conv_kernel=(_WINDOW, 3),
        conv_stride=(_HOP, 2),
        num_feat_extract_layers=2,
        conv_bias=False,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=16,
        do_stable_layer_norm=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    model = Wav2Vec2ForCTC(config)
    with torch.no_grad():
        model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.copy_(_filter_bank()[:, None])
    return model


def _filter_bank() -> torch.Tensor:
    """Start of the first convolution, float32 (4 * bands, window): windowed waves of mel-spaced frequencies.

    Each band has four phases, whose rectified sum is nearly its magnitude; the gain rises with frequency, as
    the spectrum of speech falls. From random filters the same training spends hours finding frequencies.
    """
    mel = torch.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 7600 / 700), _BANDS)
    frequency_hz = 700 * (10 ** (mel / 2595) - 1)
    time_s = (torch.arange(_WINDOW) - _WINDOW / 2) / SAMPLE_RATE_HZ
    phase = torch.arange(4) * torch.pi / 2
    angle = 2 * torch.pi * frequency_hz[:, None, None] * time_s + phase[:, None]
    gain = (frequency_hz / 1000) ** 0.7
    filters = torch.cos(angle) * torch.hann_window(_WINDOW) * gain[:, None, None]
    return (filters / 30.0).reshape(4 * _BANDS, _WINDOW)


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over one utterance, float32 (samples,): the extractor's `do_normalize`."""
    scaled = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    return np.asarray(scaled, dtype=np.float32)


def collate(waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized, zero-padded audio float32 (batch, samples) and its mask int64 (batch, samples)."""
    longest = max(len(waveform) for waveform in waveforms)
    audio_BS = torch.zeros(len(waveforms), longest)
    mask_BS = torch.zeros(len(waveforms), longest, dtype=torch.long)
    for row, waveform in enumerate(waveforms):
        audio_BS[row, : len(waveform)] = torch.from_numpy(normalize(waveform))
        mask_BS[row, : len(waveform)] = 1
    return audio_BS, mask_BS


def encode_text(text: str) -> list[int]:
    """Character indexes of an upper-case text. Raises ValueError for a character the teacher has not."""
    try:
        return [_INDEX["|" if character == " " else character] for character in text]
    except KeyError as error:
        raise ValueError(f"{text!r} has the character {error}; use A to Z and spaces") from error


def decode_greedily(logits_TV: torch.Tensor) -> str:
    """The text of the best path through CTC scores (frames, vocabulary)."""
    best = torch.unique_consecutive(logits_TV.argmax(-1)).tolist()
    text = "".join(VOCABULARY[index] for index in best if index != BLANK)
    return " ".join(text.replace("<unk>", "").replace("|", " ").split())


@torch.no_grad()
def transcribe(model: Wav2Vec2ForCTC, waveforms: list[np.ndarray]) -> list[str]:
    """Greedy texts of 16 kHz waveforms, float32 (samples,) each, in order, computed as one batch."""
    model.eval()
    audio_BS, mask_BS = collate(waveforms)
    logits_BTV = model(audio_BS, attention_mask=mask_BS).logits
    lengths = model._get_feat_extract_output_lengths(mask_BS.sum(-1))
    return [
        decode_greedily(logits_TV[:length])
        for logits_TV, length in zip(logits_BTV, lengths.tolist(), strict=True)
    ]


def save_teacher(model: Wav2Vec2ForCTC, folder: Path) -> None:
    """Writes the checkpoint in float16, its feature extractor and vocabulary, named as in transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    half = Wav2Vec2ForCTC(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE_HZ, do_normalize=True, return_attention_mask=True
    ).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(_INDEX, indent=2) + "\n")


def load_teacher(folder: Path) -> Wav2Vec2ForCTC:
    """The teacher kept in `folder`, computing in float32.

    Raises ValueError where there is no checkpoint.
    """
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} has no model.safetensors; train one with python -m demo.train_teacher")
    model: Wav2Vec2ForCTC = Wav2Vec2ForCTC.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval()
