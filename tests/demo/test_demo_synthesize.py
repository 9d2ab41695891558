"""The demo's corpus: deterministic, disjoint, in the layout of a folder with transcripts."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo.sentences import MAX_WORDS, MIN_WORDS, WORDS, is_test_sentence, sentences
from demo.synthesize import CorpusConfig, corpus_digest, main, synthesize
from demo.voices import TEST_SPEAKERS, TRAIN_SPEAKERS, Espeak, make_room_and_noise, teacher_variants

SMALL = {"minutes_train": 0.05, "minutes_test": 0.05, "minutes_untranscribed": 0.0}
TINY = CorpusConfig(minutes_train=0.3, minutes_test=0.3, minutes_untranscribed=0.2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    synthesize(folder, TINY)
    return folder


def rows(corpus: Path) -> list[dict[str, str]]:
    header, *lines = (corpus / "transcripts.tsv").read_text().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_two_runs_give_the_same_bytes(corpus, tmp_path):
    again = tmp_path / "again"
    synthesize(again, TINY)
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) > 10
    for name in files:
        assert (corpus / name).read_bytes() == (again / name).read_bytes(), name


def test_speech_beyond_the_transcribed_part_has_no_text(corpus):
    train = [row for row in rows(corpus) if row["split"] == "train"]
    kinds = [bool(row["text"]) for row in train]
    assert kinds == sorted(kinds, reverse=True) and 0 < sum(kinds) < len(kinds)
    assert all(row["speaker"] for row in train)
    assert all(row["text"] for row in rows(corpus) if row["split"] == "test")


def test_seed_changes_the_corpus(corpus, tmp_path):
    manifest = synthesize(
        tmp_path / "other",
        CorpusConfig(**SMALL, seed=1),
    )
    other = rows(tmp_path / "other")
    assert manifest["utterances"] == len(other)
    assert [row["text"] for row in other[:2]] != [row["text"] for row in rows(corpus)[:2]]


def test_layout_and_audio(corpus):
    table = rows(corpus)
    assert list(table[0]) == ["id", "split", "speaker", "text"]
    on_disk = {path.relative_to(corpus).as_posix() for path in corpus.glob("audio/*/*")}
    assert on_disk == {f"audio/{row['split']}/{row['id']}.flac" for row in table}
    for row in table:
        path = corpus / "audio" / row["split"] / f"{row['id']}.flac"
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        samples, _ = soundfile.read(path, dtype="float32")
        assert 0.01 < np.sqrt(np.mean(samples**2)) < 0.2
        assert 0.5 < info.duration < 10.0


def test_train_and_test_share_no_speaker_and_no_sentence(corpus):
    table = rows(corpus)
    for column in ("speaker", "text"):
        train = {row[column] for row in table if row["split"] == "train"}
        test = {row[column] for row in table if row["split"] == "test"}
        assert train and test
        assert not train & test
    assert not {s.variant for s in TRAIN_SPEAKERS} & {s.variant for s in TEST_SPEAKERS}
    assert len({s.voice for s in (*TRAIN_SPEAKERS, *TEST_SPEAKERS)}) >= 16


def test_teacher_never_hears_a_variant_of_a_test_speaker():
    variants = teacher_variants()
    assert len(variants) > 50
    assert not set(variants) & {speaker.variant for speaker in TEST_SPEAKERS}


def test_sentences_come_from_a_small_vocabulary_and_do_not_repeat():
    drawn = [text for test in (True, False) for text in itertools.islice(sentences("any", test=test), 400)]
    assert len(set(drawn)) == len(drawn)
    assert {word for text in drawn for word in text.split()} <= set(WORDS)
    assert 100 <= len(WORDS) <= 160
    assert all(MIN_WORDS <= len(text.split()) <= MAX_WORDS for text in drawn)
    assert sum(is_test_sentence(text) for text in drawn) == 400


def test_complete_corpus_is_kept_and_a_damaged_one_is_made_again(tmp_path):
    folder = tmp_path / "corpus"
    config = CorpusConfig(**SMALL)
    synthesize(folder, config)
    path = next(folder.glob("audio/train/*.flac"))
    before = path.stat().st_mtime_ns
    synthesize(folder, config)
    assert path.stat().st_mtime_ns == before
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    synthesize(folder, config)
    assert path.read_bytes() == whole


def test_what_an_interrupted_run_left_is_cleared(tmp_path):
    leftover = tmp_path / "corpus.partial" / "audio"
    leftover.mkdir(parents=True)
    synthesize(tmp_path / "corpus", CorpusConfig(**SMALL))
    assert not leftover.parent.exists()


def test_folder_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="name another folder"):
        synthesize(tmp_path, TINY)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("values", "message"),
    [({"minutes_train": 0.0}, "minutes_train"), ({"snr_db_low": 30.0, "snr_db_high": 10.0}, "snr_db_low")],
)
def test_impossible_configurations_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**values)


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "corpus"
    main([str(folder), "--minutes-train", "0.05", "--minutes-test", "0.05", "--seed", "3"])
    assert "utterances" in capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parameters"]["seed"] == 3
    assert manifest["digest"] == corpus_digest(folder)
    with pytest.raises(SystemExit):
        main([str(folder), "--minutes-train", "-1"])
    assert "minutes_train" in capsys.readouterr().err


def test_unknown_voice_and_silence_are_named():
    engine = Espeak()
    speaker = TRAIN_SPEAKERS[0]
    unknown = type(speaker)(
        name="nobody", accent="xx-nowhere", variant="f1", pitch=50, pitch_range=50, rate_wpm=150
    )
    with pytest.raises(ValueError, match="xx-nowhere"):
        engine.speak("HELLO", unknown)
    with pytest.raises(ValueError, match="silent"):
        engine.speak("", speaker)


def test_letter_a_is_not_read_as_the_article():
    engine = Espeak()
    letter, article = (engine.speak(f"SPELL {word} B", TRAIN_SPEAKERS[0]) for word in ("A", "a"))
    assert len(letter) > len(article)


def test_noise_level_is_the_one_asked_for():
    clean = np.sin(np.arange(32_000) * 0.1).astype(np.float32)
    noisy = make_room_and_noise(
        clean,
        np.random.default_rng(0),
        snr_db=(10.0, 10.0),
        level_db=(-20.0, -20.0),
        reverberation_s=(0.01, 0.01),
    )
    assert noisy.dtype == np.float32 and noisy.shape == clean.shape
    # Speech of power 1 and noise of a tenth, at -20 dB.
    assert np.mean(noisy**2) == pytest.approx(0.01 * 1.1, rel=0.05)
