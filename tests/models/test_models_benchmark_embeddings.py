"""Embeddings of a corpus for `python -m benchmarks.quantizer`."""

import numpy as np
import pytest
import torch

from benchmarks.quantizer import embeddings


@pytest.fixture
def whisper(tmp_path):
    """A random Whisper encoder of one small layer."""
    from transformers import WhisperConfig, WhisperModel

    sizes = {"d_model": 16, "vocab_size": 8, "max_target_positions": 4, "max_source_positions": 1500}
    layers = {
        f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")
    }
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    ffn = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    torch.manual_seed(0)
    WhisperModel(WhisperConfig(**sizes, **layers, **tokens, **ffn)).save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


def test_embeddings_of_a_corpus(whisper, tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    random = np.random.default_rng(0)
    seconds = {"train": (20, 25, 16), "test": (31,)}
    corpus, lines, waves = tmp_path / "corpus", ["id\tsplit\tspeaker\ttext"], {}
    for split, lengths in seconds.items():
        (corpus / "audio" / split).mkdir(parents=True)
        waves[split] = [random.uniform(-0.5, 0.5, 16_000 * length).astype(np.float32) for length in lengths]
        for i, wave in reversed(list(enumerate(waves[split]))):  # the order of the table counts, not of names
            soundfile.write(corpus / "audio" / split / f"{split}{i}.flac", wave, 16_000, subtype="PCM_24")
            lines.append(f'{split}{i}\t{split}\tme\tSAY "')
    (corpus / "transcripts.tsv").write_text("\n".join(lines) + "\n")
    train, test = embeddings.corpus_embeddings(corpus, whisper, tmp_path / "out", torch.device("cpu"))
    assert np.load(train).shape == (2 * 1500, 16) and np.load(test).shape == (1500, 16)
    joined = np.concatenate(waves["train"][::-1])
    encoder = embeddings.WhisperEncoder(whisper, torch.device("cpu"))
    second = encoder.embed(joined[480_000:960_000])
    np.testing.assert_allclose(np.load(train)[1500:], second, atol=1e-3)

    monkeypatch.setattr(embeddings, "WhisperEncoder", None)  # what is there is not computed again
    assert embeddings.corpus_embeddings(corpus, whisper, tmp_path / "out", torch.device("cpu")) == (
        train,
        test,
    )
    (corpus / "audio" / "test" / "test0.flac").unlink()
    with pytest.raises(ValueError, match=r"no .*test0\.flac"):
        embeddings.audio_files(corpus, "test")
    with pytest.raises(ValueError, match="no utterance of the split 'dev'"):
        embeddings.audio_files(corpus, "dev")


def test_windows_of_thirty_seconds():
    pieces = [np.arange(start, start + 400_000) for start in range(0, 1_600_000, 400_000)]
    cut = list(embeddings.windows(pieces))
    assert [len(window) for window in cut] == [480_000] * 3
    np.testing.assert_array_equal(np.concatenate(cut), np.arange(1_440_000))
