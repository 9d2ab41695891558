"""Corpora of manifests: what is read, what is refused, and with which words."""

import gzip
import json
from itertools import islice
from pathlib import Path

import fsspec
import pytest
from lhotse import CutSet, MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.cut import MultiCut
from pydantic import ValidationError
from s3_server import S3Server
from workers_fakes import cut_of, make_cuts, write_manifest, write_sound

from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.cuts import Refused

HEADER = "id\tsplit\tspeaker\ttext\n"


def manifest_corpus(path: Path, **settings: object) -> Corpus:
    return Corpus(CorpusConfig(format="cuts", train=str(path), **settings), sample_rate_hz=16_000)


def only(corpus: Corpus) -> MonoCut | Refused:
    (cut,) = corpus.cuts("train")
    return cut


def test_durations(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.05, 0.5, 2.0, 0.3])
    cuts[3].duration = 0.0
    corpus = manifest_corpus(write_manifest(tmp_path / "c.jsonl", cuts), max_duration_s=1.0)
    short, good, long, nothing = corpus.cuts("train")
    assert isinstance(short, Refused) and "lasts 0.050 s, less than corpus.min_duration_s 0.1" in short.reason
    assert isinstance(good, MonoCut)
    assert isinstance(long, Refused) and long.cut_id == "u002"
    assert "more than corpus.max_duration_s 1, and has a text, which nobody can split" in long.reason
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
