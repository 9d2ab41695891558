"""The demo's teacher: its training resumes, and the checkpoint in the repository understands new speakers."""

import itertools
import json
import random

import jiwer
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from demo import evaluate_teacher, train_teacher
from demo.sentences import is_test_sentence
from demo.synthesize import CorpusConfig, speak_split, synthesize
from demo.teacher_model import (
    VOCABULARY,
    collate,
    decode_greedily,
    encode_text,
    load_teacher,
    new_teacher,
    normalize,
    save_teacher,
    transcribe,
)
from demo.teacher_speech import EXTRA_WORDS, batches, random_text, stretch
from demo.train_teacher import TeacherTrainer, TrainingConfig, train, word_error_rate
from demo.voices import TEST_SPEAKERS, Espeak

TINY = TrainingConfig(hours=0.004, batch_s=6.0)


@pytest.fixture(scope="module")
def untrained() -> Wav2Vec2ForCTC:
    return new_teacher(0).eval()


@pytest.fixture
def short_run(monkeypatch):
    """Two utterances a pool and a few held-out sentences, so that a whole run takes a second."""
    monkeypatch.setattr(train_teacher, "POOL", 2)
    monkeypatch.setattr(train_teacher, "EVALUATION", CorpusConfig(minutes_test=0.1))


def test_normalization_is_that_of_the_feature_extractor():
    waveform = np.random.default_rng(0).normal(0.1, 0.02, 4000).astype(np.float32)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    expected = extractor(waveform, sampling_rate=16_000).input_values[0]
    np.testing.assert_allclose(normalize(waveform), expected, atol=1e-5)


def test_fifty_frames_a_second(untrained):
    audio_BS, mask_BS = collate([np.random.default_rng(0).normal(size=32_000).astype(np.float32)])
    assert np.prod(untrained.config.conv_stride) == 320
    assert untrained(audio_BS, attention_mask=mask_BS).logits.shape == (1, 99, len(VOCABULARY))


def test_an_utterance_does_not_depend_on_its_neighbours(untrained):
    rng = np.random.default_rng(1)
    short, long = (rng.normal(size=size).astype(np.float32) for size in (9_000, 30_000))
    with torch.no_grad():
        alone = untrained(collate([short])[0], attention_mask=collate([short])[1]).logits[0]
        audio_BS, mask_BS = collate([long, short])
        beside = untrained(audio_BS, attention_mask=mask_BS).logits[1, : len(alone)]
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=1e-4)


def test_texts_survive_encoding_and_greedy_decoding():
    text = "SPELL A B B"
    indexes = [index for label in encode_text(text) for index in (label, label, 0)]
    assert decode_greedily(torch.nn.functional.one_hot(torch.tensor(indexes))) == text
    with pytest.raises(ValueError, match="use A to Z"):
        encode_text("it's")


def test_saved_teacher_is_half_precision_and_loads_with_transformers_alone(untrained, tmp_path):
    save_teacher(untrained, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    loaded = Wav2Vec2ForCTC.from_pretrained(tmp_path, dtype=torch.float32)
    for name, value in untrained.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert json.loads((tmp_path / "vocab.json").read_text())["A"] == encode_text("A")[0]
    assert next(untrained.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_teacher(tmp_path / "nothing")


def test_teacher_text_avoids_test_sentences_and_leaves_the_grammar():
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(500)]
    grammatical = [text for text in texts if "THE" in text.split()]
    assert not any(is_test_sentence(text) for text in grammatical if text.startswith("TURN"))
    assert any(word in EXTRA_WORDS for text in texts for word in text.split())


def test_stretching_raises_the_pitch():
    wave = (1000 * np.sin(np.arange(8000) * 0.1)).astype(np.int16)
    faster = stretch(wave, 1.25)
    assert len(faster) == 6400
    peak = [np.argmax(np.abs(np.fft.rfft(signal[:6400]))) for signal in (wave, faster)]
    assert peak[1] == pytest.approx(1.25 * peak[0], rel=0.02)


def test_batches_stay_within_their_seconds_of_padded_audio():
    groups = list(batches(Espeak(), "seed", pool=12, batch_s=8.0))
    assert sum(len(group) for group in groups) == 12
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(e.audio) for e in group) <= 8.0 * 16_000


def test_learning_rate_warms_up_and_falls():
    config = TrainingConfig(hours=10.0, warmup_hours=1.0, learning_rate=1.0)
    rates = [config.rate_after(hours) for hours in (0.0, 0.5, 1.0, 5.0, 10.0)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
    with pytest.raises(ValueError, match="hours"):
        TrainingConfig(hours=0.0)


def test_one_utterance_can_be_learned(tmp_path):
    trainer = TeacherTrainer(TrainingConfig(warmup_hours=1e-6, hours=1e6, learning_rate=2e-3), tmp_path)
    example = next(iter(batches(Espeak(), "one", pool=1, batch_s=8.0)))
    losses = [trainer.step(example) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_stopped_training_goes_on_where_it_stood(short_run, tmp_path, capsys):
    trainer = TeacherTrainer(TINY, tmp_path)
    for examples in batches(Espeak(), "0-0", pool=2, batch_s=6.0):
        trainer.step(examples)
    trainer.pools = 1
    trainer.save()
    resumed = TeacherTrainer(TINY, tmp_path)
    assert (resumed.steps, resumed.hours, resumed.pools) == (trainer.steps, trainer.hours, 1)
    examples = next(iter(batches(Espeak(), "0-1", pool=2, batch_s=6.0)))
    assert trainer.step(examples) == resumed.step(examples)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name

    heard_before = trainer.hours
    error_rate = train(TINY, tmp_path, tmp_path / "out")
    assert error_rate > 0.3
    assert "trained:" in capsys.readouterr().out
    assert TeacherTrainer(TINY, tmp_path).hours >= max(TINY.hours, heard_before * 0.5)
    assert load_teacher(tmp_path / "out").config.hidden_size == 160


def test_training_command(short_run, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--run-folder", str(tmp_path / "run")]
    train_teacher.main([*arguments, "--hours", "0.0001", "--save-every-s", "0.001"])
    assert "held-out WER" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train_teacher.main([*arguments, "--hours", "-1"])
    assert "hours is -1" in capsys.readouterr().err


def test_kept_checkpoint_is_small_and_half_precision():
    path = evaluate_teacher.TEACHER / "model.safetensors"
    assert path.stat().st_size <= 8_000_000
    with safe_open(path, "pt") as file:
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118


def test_kept_teacher_understands_speakers_it_never_heard():
    speech = speak_split(Espeak(), "test", TEST_SPEAKERS, 60.0, CorpusConfig(seed=77))
    utterances = list(itertools.islice(speech, 24))
    assert word_error_rate(load_teacher(evaluate_teacher.TEACHER), utterances) < 0.25


def test_kept_teacher_understands_one_sentence_of_a_test_voice():
    utterance = next(speak_split(Espeak(), "test", TEST_SPEAKERS, 1.0, CorpusConfig(seed=5)))
    text = transcribe(load_teacher(evaluate_teacher.TEACHER), [utterance.audio])[0]
    assert jiwer.cer(utterance.text, text) < 0.2


def test_evaluation_command(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    synthesize(corpus, CorpusConfig(minutes_train=0.05, minutes_test=0.2, snr_db_low=25.0))
    evaluate_teacher.main([str(corpus)])
    assert float(capsys.readouterr().out.split()[-1]) < 0.3
    for arguments, message in (
        ([str(tmp_path / "none")], "make the corpus"),
        ([str(corpus), "--split", "dev"], "'dev'"),
    ):
        with pytest.raises(SystemExit):
            evaluate_teacher.main(arguments)
        assert message in capsys.readouterr().err
