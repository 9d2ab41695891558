"""Folder corpora: the TSV, the audio files, and what is refused."""

import errno
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from botocore.exceptions import EndpointConnectionError
from lhotse import MonoCut
from workers_fakes import sound, write_sound

from mvqkd.storage.errors import StorageError
from mvqkd.storage.local_store import LocalStore
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.cuts import Refused

HEADER = "id\tsplit\tspeaker\ttext\n"


def folder_corpus(root: Path, lines: str, **settings: object) -> Corpus:
    root.mkdir(parents=True, exist_ok=True)
    (root / "transcripts.tsv").write_text(lines, encoding="utf-8")
    return Corpus(CorpusConfig(format="folder", root=str(root), **settings), sample_rate_hz=16_000)


def only(corpus: Corpus) -> MonoCut | Refused:
    (cut,) = corpus.cuts("train")
    return cut


def test_folder(tmp_path: Path) -> None:
    write_sound(tmp_path / "audio/train/one.wav", 0.5)
    write_sound(tmp_path / "audio/train/two.flac", 0.25)
    write_sound(tmp_path / "audio/test/three.wav", 0.3)
    lines = HEADER + "one\ttrain\tann\tA CAT\n\nthree\ttest\tbob\tÉTÉ\ntwo\ttrain\t\tA DOG\r\n"
    corpus = folder_corpus(tmp_path, lines)
    one, two = corpus.cuts("train")
    (three,) = corpus.cuts("test")
    assert isinstance(one, MonoCut) and isinstance(two, MonoCut) and isinstance(three, MonoCut)
    assert [one.id, two.id, three.id] == ["one", "two", "three"]
    assert (one.duration, two.duration) == (0.5, 0.25)
    assert one.supervisions[0].speaker == "ann" and one.supervisions[0].text == "A CAT"
    assert two.supervisions[0].speaker is None and two.supervisions[0].text == "A DOG"
    assert three.supervisions[0].text == "ÉTÉ"
    assert AudioLoader(16_000)(two).shape == (4000,)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "id\ttext\n",
            r"transcripts.tsv: the first line must be the header id, split, speaker, text .* id, text",
        ),
        ("", "the first line must be the header"),
        (HEADER + "one\ttrain\tann\n", r"transcripts.tsv:2: 3 fields instead of 4.*correct the line"),
        (HEADER + "one\tdev\tann\tA CAT\n", "no split 'train', it has dev; set corpus.train"),
        (HEADER, "no split 'train', it has none"),
    ],
)
def test_bad_transcripts(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        list(folder_corpus(tmp_path, lines).cuts("train"))


def test_missing_transcripts(tmp_path: Path) -> None:
    corpus = Corpus(CorpusConfig(format="folder", root=str(tmp_path)), sample_rate_hz=16_000)
    with pytest.raises(CorpusError, match=r"transcripts.tsv: no such file; see corpus.root"):
        list(corpus.cuts("train"))


def test_transcripts_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "transcripts.tsv").write_bytes(HEADER.encode() + "one\ttrain\tann\tÉTÉ\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"transcripts.tsv:\d: cannot be read .*write it again"):
        list(Corpus(CorpusConfig(format="folder", root=str(tmp_path)), sample_rate_hz=16_000).cuts("train"))


def test_bad_audio_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    audio = tmp_path / "audio/train"
    write_sound(audio / "good.wav")
    (audio / "corrupt.flac").write_bytes(b"fLaC and then nothing of use")
    soundfile.write(audio / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    names = ("missing", "corrupt", "empty", "good")
    lines = HEADER + "".join(f"{name}\ttrain\tann\tA CAT\n" for name in names)
    missing, corrupt, empty, good = folder_corpus(tmp_path, lines).cuts("train")
    assert isinstance(missing, Refused) and missing.cut_id == "missing"
    assert "no audio file" in missing.reason and f"{audio}/missing" in missing.reason
    assert "add the file or remove the line" in missing.reason
    assert isinstance(corrupt, Refused) and str(audio / "corrupt.flac") in corrupt.reason
    assert "cannot be read" in corrupt.reason and "write it again" in corrupt.reason
    assert isinstance(empty, Refused) and "empty.wav: the audio has no samples; remove it" in empty.reason
    assert isinstance(good, MonoCut)


class Failing(io.FileIO):
    """A file of a store that breaks off: nothing is read beyond `good` bytes."""

    good, trouble = 0, OSError(errno.EIO, "the store broke off")

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= self.good:
            raise self.trouble
        return super().read(size)


@pytest.mark.parametrize("good", [0, 20])
@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.EIO, "the store broke off"),
        StorageError("s3://bucket", "the store broke off", "try again"),
        EndpointConnectionError(endpoint_url="the store broke off"),
    ],
)
def test_trouble_of_the_store_is_not_the_utterances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int, trouble: Exception
) -> None:
    write_sound(tmp_path / "audio/train/one.wav", 0.5)
    corpus = folder_corpus(tmp_path, HEADER + "one\ttrain\tann\tA CAT\n")

    def open_failing(url: str, options: object) -> Failing:
        file = Failing(url)
        file.good, file.trouble = good, trouble
        return file

    monkeypatch.setattr("mvqkd.workers.corpus.folder.open_binary", open_failing)
    with pytest.raises(type(trouble), match="the store broke off"):
        only(corpus)


def test_file_that_vanished_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(tmp_path / "audio/train/one.wav", 0.5)
    corpus = folder_corpus(tmp_path, HEADER + "one\ttrain\tann\tA CAT\n")
    monkeypatch.setattr(Failing, "trouble", FileNotFoundError("gone"))
    monkeypatch.setattr("mvqkd.workers.corpus.folder.open_binary", lambda url, options: Failing(url))
    refused = only(corpus)
    assert isinstance(refused, Refused) and "one.wav: the audio cannot be read (gone)" in refused.reason


def test_low_sampling_rate(tmp_path: Path) -> None:
    write_sound(tmp_path / "audio/train/phone.wav", 0.5, rate=8000)
    lines = HEADER + "phone\ttrain\tann\tA CAT\n"
    refused = only(folder_corpus(tmp_path, lines))
    assert isinstance(refused, Refused)
    assert "8000 Hz" in refused.reason and "corpus.allow_upsampling" in refused.reason
    cut = only(folder_corpus(tmp_path, lines, allow_upsampling=True))
    assert isinstance(cut, MonoCut)
    assert AudioLoader(16_000)(cut).shape == (8000,)


def test_stereo(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "audio/train/two.wav", 0.5, channels=2)
    lines = HEADER + "two\ttrain\tann\tA CAT\n"
    refused = only(folder_corpus(tmp_path, lines))
    assert isinstance(refused, Refused)
    assert "2 channels [0, 1]; choose one with corpus.channel" in refused.reason
    cut = only(folder_corpus(tmp_path, lines, channel=1))
    assert isinstance(cut, MonoCut)
    assert (cut.id, cut.channel, cut.supervisions[0].text) == ("two", 1, "A CAT")
    data, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(AudioLoader(16_000)(cut).numpy(), data[:, 1])
    refused = only(folder_corpus(tmp_path, lines, channel=5))
    assert isinstance(refused, Refused) and "not corpus.channel 5" in refused.reason


NAMES = ["a.WAV", "b.FLAC", "c.sph", "d.aiff", "e.Flac", "f.aif", "g.SPH", "h.opus", "i.mp3", "j.au", "k.oga"]


def write_as(path: Path, data: np.ndarray) -> None:
    formats = {".sph": "NIST", ".oga": "OGG", ".opus": "OGG", ".aif": "AIFF"}
    kind = formats.get(path.suffix.lower(), path.suffix[1:].upper())
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, data, 16_000, format=kind, subtype="OPUS" if path.suffix == ".opus" else None)


def test_whatever_the_decoder_reads_in_any_case(tmp_path: Path) -> None:
    for name in NAMES:
        write_as(tmp_path / "audio/train" / name, sound(name, 0.5))
    lines = HEADER + "".join(f"{name[0]}\ttrain\tann\tA CAT\n" for name in NAMES)
    cuts = list(folder_corpus(tmp_path, lines).cuts("train"))
    assert [cut.recording.sources[0].source for cut in cuts if isinstance(cut, MonoCut)] == [
        str(tmp_path / "audio/train" / name) for name in NAMES
    ]
    for cut, name in zip(cuts, NAMES, strict=True):
        assert isinstance(cut, MonoCut)
        waveform = AudioLoader(16_000)(cut).numpy()
        lossy = name.endswith((".opus", ".mp3", ".oga"))
        assert abs(len(waveform) - 8000) <= (400 if lossy else 0)
        if not lossy:
            np.testing.assert_allclose(waveform, sound(name, 0.5), atol=2**-14)


def test_two_files_of_one_utterance_are_refused_with_both(tmp_path: Path) -> None:
    for name in ("a.wav", "a.FLAC", "b.wav"):
        write_as(tmp_path / "audio/train" / name, sound(name, 0.5))
    (tmp_path / "audio/train/b.txt").write_text("a transcript beside the audio is no audio")
    lines = HEADER + "a\ttrain\tann\tA\nb\ttrain\tann\tB\n"
    a, b = folder_corpus(tmp_path, lines).cuts("train")
    audio = tmp_path / "audio/train"
    assert isinstance(a, Refused) and isinstance(b, MonoCut)
    assert a.reason == f"has 2 audio files, {audio}/a.FLAC and {audio}/a.wav; remove all but one"


def test_audio_that_nobody_decodes_is_named(tmp_path: Path) -> None:
    (tmp_path / "audio/train").mkdir(parents=True)
    (tmp_path / "audio/train/a.m4a").write_bytes(b"....ftypM4A ")
    refused = only(folder_corpus(tmp_path, HEADER + "a\ttrain\tann\tA\n"))
    assert isinstance(refused, Refused)
    assert refused.reason == f"{tmp_path}/audio/train/a.m4a: libsndfile does not decode such files; " + (
        "convert it, to FLAC for instance"
    )


def test_ids_with_slashes_lie_in_folders(tmp_path: Path) -> None:
    write_sound(tmp_path / "audio/train/ann/one.wav", 0.5)
    write_sound(tmp_path / "audio/train/bob/x/one.wav", 0.4)
    rows = (
        "ann/one",
        "bob/x/one",
        "ann/one.wav/x",
        "carl/one",
        "../train/ann/one",
        "/ann/one",
        "",
        "a\0b",
        "x" * 300 + "/y",
    )
    lines = HEADER + "".join(f"{name}\ttrain\tann\tA CAT\n" for name in rows)
    found = list(folder_corpus(tmp_path, lines).cuts("train"))
    assert [cut.duration for cut in found[:2] if isinstance(cut, MonoCut)] == [0.5, 0.4]
    reasons = [cut.reason for cut in found[2:] if isinstance(cut, Refused)]
    assert len(reasons) == 7
    assert "no audio file" in reasons[0] and "no audio file" in reasons[1] and "no audio file" in reasons[6]
    for number, reason in zip((6, 7, 8, 9), reasons[2:6], strict=True):
        assert reason.startswith(f"{tmp_path}/transcripts.tsv:{number}: id ") and "names no file" in reason
    unnamed = f"{tmp_path}/transcripts.tsv:8"
    assert [cut.cut_id for cut in found[5:7] if isinstance(cut, Refused)] == ["/ann/one", unnamed]


def test_a_bad_line_of_the_tsv_costs_that_line_alone(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_sound(tmp_path / f"audio/train/{name}.wav", 0.5)
    lines = HEADER + "one\ttrain\tann\tA\ntwo\ttrain\tann\tB\tC\nthree\ttrain\tann\tC\nthr"
    one, two, three, torn = folder_corpus(tmp_path, lines).cuts("train")
    assert isinstance(one, MonoCut) and isinstance(three, MonoCut)
    assert isinstance(two, Refused) and isinstance(torn, Refused)
    tsv = tmp_path / "transcripts.tsv"
    assert two.reason.startswith(f"{tsv}:3: 5 fields instead of 4: id, split, speaker, text")
    assert torn.reason.startswith(f"{tsv}:5: 1 fields instead of 4")


def test_one_listing_does_for_a_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for each utterance, or for each extension that it might have, takes hours on a large corpus."""
    for number in range(20):
        write_sound(tmp_path / f"audio/train/{number}.wav", 0.2)
    corpus = folder_corpus(tmp_path, HEADER + "".join(f"{n}\ttrain\tann\tA\n" for n in range(20)))
    calls: list[str] = []
    for name in ("list", "exists"):
        monkeypatch.setattr(LocalStore, name, counted(calls, name, getattr(LocalStore, name)))
    assert all(isinstance(cut, MonoCut) for cut in corpus.cuts("train"))
    assert calls == ["list"]


def counted(calls: list[str], name: str, function: Callable[..., object]) -> Callable[..., object]:
    def call(*arguments: object) -> object:
        calls.append(name)
        return function(*arguments)

    return call


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_sound(tmp_path / "corpus/audio/train/one.wav", 0.5)
    (tmp_path / "corpus/transcripts.tsv").write_text(HEADER + "one\ttrain\tann\tA CAT\n")
    cut = only(Corpus(CorpusConfig(format="folder", root="~/corpus/"), sample_rate_hz=16_000))
    assert isinstance(cut, MonoCut)
    assert cut.recording.sources[0].source == str(tmp_path / "corpus/audio/train/one.wav")
