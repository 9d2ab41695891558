"""Folder corpora and manifests: what is read, what is refused, and with which words."""

import errno
import gzip
import io
import json
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from botocore.exceptions import EndpointConnectionError
from lhotse import CutSet, MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.cut import MultiCut
from pydantic import ValidationError
from s3_server import S3Server
from workers_fakes import cut_of, make_cuts, write_manifest, write_sound

from mvqkd.storage.errors import StorageError
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.cuts import Refused

HEADER = "id\tsplit\tspeaker\ttext\n"


def folder_corpus(root: Path, lines: str, **settings: object) -> Corpus:
    root.mkdir(parents=True, exist_ok=True)
    (root / "transcripts.tsv").write_text(lines, encoding="utf-8")
    return Corpus(CorpusConfig(format="folder", root=str(root), **settings), sample_rate_hz=16_000)


def manifest_corpus(path: Path, **settings: object) -> Corpus:
    return Corpus(CorpusConfig(format="cuts", train=str(path), **settings), sample_rate_hz=16_000)


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


def test_durations(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.05, 0.5, 2.0, 0.3])
    cuts[3].duration = 0.0
    corpus = manifest_corpus(write_manifest(tmp_path / "c.jsonl", cuts), max_duration_s=1.0)
    short, good, long, nothing = corpus.cuts("train")
    assert isinstance(short, Refused) and "lasts 0.050 s, less than corpus.min_duration_s 0.1" in short.reason
    assert isinstance(good, MonoCut)
    assert isinstance(long, Refused) and long.cut_id == "u002"
    assert "more than corpus.max_duration_s 1; cut it into windows" in long.reason
    assert isinstance(nothing, Refused) and "lasts 0.000 s" in nothing.reason


def test_cuts_that_are_not_plain(tmp_path: Path) -> None:
    one, other = make_cuts(tmp_path, [0.5, 0.5])
    stereo = cut_of(write_sound(tmp_path / "stereo.wav", channels=2))
    multi = MultiCut(id="multi", start=0, duration=0.5, channel=[0, 1], recording=stereo.recording)
    single = MultiCut(id="single", start=0, duration=0.5, channel=[0], recording=one.recording)
    bare = MonoCut(id="bare", start=0, duration=0.5, channel=0)
    mixed = one.mix(other)
    path = write_manifest(tmp_path / "c.jsonl", [multi, single, bare, mixed])
    found = list(manifest_corpus(path).cuts("train"))
    assert isinstance(found[0], Refused) and "2 channels" in found[0].reason
    assert isinstance(found[1], MonoCut) and found[1].id == "single"
    assert (
        isinstance(found[2], Refused) and "bare" in found[2].cut_id and "has no recording" in found[2].reason
    )
    assert isinstance(found[3], Refused) and "is a MixedCut" in found[3].reason


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_manifest(tmp_path: Path, name: str) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4])
    CutSet.from_cuts(cuts).to_file(tmp_path / name)
    found = list(manifest_corpus(tmp_path / name).cuts("train"))
    assert [cut.to_dict() for cut in found if isinstance(cut, MonoCut)] == [cut.to_dict() for cut in cuts]


def test_manifest_paths_are_under_the_root(tmp_path: Path) -> None:
    (cut,) = make_cuts(tmp_path / "audio", [0.5])
    cut.recording.sources = [AudioSource("file", [0], "audio/u000.wav")]
    write_manifest(tmp_path / "c.jsonl", [cut])
    found = only(
        Corpus(CorpusConfig(format="cuts", root=str(tmp_path), train="c.jsonl"), sample_rate_hz=16_000)
    )
    assert isinstance(found, MonoCut)
    assert found.recording.sources[0].source == str(tmp_path / "audio/u000.wav")


def test_manifest_is_read_lazily(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4, 0.3])
    path = write_manifest(tmp_path / "c.jsonl", cuts)
    with path.open("a") as file:
        file.write('{"id": "broken"\n')
    stream = manifest_corpus(path).cuts("train")
    assert [cut.id for cut in islice(stream, 3) if isinstance(cut, MonoCut)] == ["u000", "u001", "u002"]
    torn = next(stream)
    assert isinstance(torn, Refused) and torn.cut_id == f"{path}:4"
    assert torn.reason.startswith(f"{path}:4: not a Lhotse cut (") and "correct the line" in torn.reason
    assert list(stream) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            json.dumps({"id": "x", "recording_id": "x", "start": 0, "duration": 1}),
            "a SupervisionSegment, not",
        ),
        ("[1, 2]", "not a Lhotse cut"),
        (json.dumps({"type": "MonoCut", "nothing": 1}), "not a Lhotse cut"),
        (json.dumps({"type": "Other"}), "not a Lhotse cut"),
    ],
)
def test_lines_that_are_no_cuts(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "c.jsonl").write_text(line + "\n")
    with pytest.raises(CorpusError, match=rf"c.jsonl:1: {message}"):
        list(manifest_corpus(tmp_path / "c.jsonl").cuts("train"))


def test_truncated_gzip(tmp_path: Path) -> None:
    data = gzip.compress(write_manifest(tmp_path / "c.jsonl", make_cuts(tmp_path, [0.3] * 3)).read_bytes())
    (tmp_path / "c.jsonl.gz").write_bytes(data[:-20])
    with pytest.raises(CorpusError, match=r"c.jsonl.gz:\d: cannot be read .*damaged"):
        list(manifest_corpus(tmp_path / "c.jsonl.gz").cuts("train"))


def test_empty_and_unset_parts(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match=r"corpus.train: nothing found in .*c.jsonl.*check both"):
        list(manifest_corpus(tmp_path / "c.jsonl").cuts("train"))
    with pytest.raises(CorpusError, match=r"corpus.test is not set"):
        list(manifest_corpus(tmp_path / "c.jsonl", test=None).cuts("test"))


def test_impossible_settings() -> None:
    with pytest.raises(ValidationError, match=r"needs corpus.root"):
        CorpusConfig(format="folder")
    with pytest.raises(ValidationError, match="min_duration_s must be below"):
        CorpusConfig(format="cuts", min_duration_s=40.0)


@pytest.mark.integration
def test_corpora_in_s3(tmp_path: Path, s3_environment: S3Server) -> None:
    root = f"s3://{s3_environment.bucket}/corpus"
    options = {"endpoint_url": s3_environment.endpoint_url}
    fs = fsspec.filesystem("s3", endpoint_url=s3_environment.endpoint_url)
    cuts = make_cuts(tmp_path, [0.5, 0.3])
    for cut in cuts:
        fs.put(str(tmp_path / f"{cut.id}.wav"), f"{root}/audio/train/{cut.id}.wav")
    fs.pipe(f"{root}/transcripts.tsv", (HEADER + "u000\ttrain\tann\tA\nu001\ttrain\tann\tB\n").encode())
    load = AudioLoader(16_000, s3=options)
    in_folder = list(
        Corpus(CorpusConfig(format="folder", root=root), sample_rate_hz=16_000, options=options).cuts("train")
    )
    assert [cut.id for cut in in_folder if isinstance(cut, MonoCut)] == ["u000", "u001"]
    assert [load(cut).numel() for cut in in_folder if isinstance(cut, MonoCut)] == [8000, 4800]

    for cut in cuts:
        cut.recording = Recording.from_dict(cut.recording.to_dict())
        cut.recording.sources = [AudioSource("file", [0], f"audio/train/{cut.id}.wav")]
    lines = "".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
    fs.pipe(f"{root}/cuts.jsonl.gz", gzip.compress(lines.encode()))
    config = CorpusConfig(format="cuts", root=root, train="cuts.jsonl.gz")
    in_manifest = list(Corpus(config, sample_rate_hz=16_000, options=options).cuts("train"))
    assert [load(cut).numel() for cut in in_manifest if isinstance(cut, MonoCut)] == [8000, 4800]

    wrong = CorpusConfig(format="folder", root=f"s3://{s3_environment.bucket}-wrong/corpus")
    with pytest.raises(CorpusError, match=r"s3://mvqkd-tests-wrong/corpus/transcripts.tsv: no such file"):
        list(Corpus(wrong, sample_rate_hz=16_000, options=options).cuts("train"))


@pytest.mark.integration
def test_wrong_key_for_s3(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    config = CorpusConfig(format="folder", root=f"s3://{s3_environment.bucket}/corpus")
    options = {"endpoint_url": s3_environment.endpoint_url}
    with pytest.raises(CorpusError, match=r"transcripts.tsv: cannot be read .*credentials"):
        list(Corpus(config, sample_rate_hz=16_000, options=options).cuts("train"))
