"""Lhotse Shar folders: the cuts and the audio that Lhotse itself reads, without audio in the manifests."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from lhotse import CutSet, MonoCut
from lhotse.shar import SharWriter
from s3_server import S3Server
from workers_fakes import make_cuts

from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.cuts import Refused, UtteranceError, cut_from_json, cut_to_json


def write_shar(folder: Path, cuts: list[MonoCut], fields: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    with SharWriter(str(folder), fields=fields or {"recording": "flac"}, shard_size=2) as writer:
        for cut in cuts:
            writer.write(cut)
    return folder


def read(folder: Path | str, options: dict[str, str] | None = None) -> list[MonoCut | Refused]:
    return list(
        Corpus(CorpusConfig(format="shar", train=str(folder)), sample_rate_hz=16_000, options=options).cuts(
            "train"
        )
    )


def test_same_as_lhotse(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4, 0.3])
    cuts[1] = cuts[1].truncate(offset=0.1, preserve_id=True)
    folder = write_shar(tmp_path / "shar", cuts)
    found = read(folder)
    expected = list(CutSet.from_shar(in_dir=str(folder)))
    assert [cut.id for cut in found if isinstance(cut, MonoCut)] == ["u000", "u001", "u002"]
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, MonoCut)
        line = cut_to_json(ours)
        assert len(line) < 1500
        waveform_T = AudioLoader(16_000)(cut_from_json(line))
        np.testing.assert_array_equal(waveform_T.numpy(), theirs.load_audio()[0])
        assert ours.supervisions[0].text == theirs.supervisions[0].text


def test_folder_that_refers_to_audio_elsewhere(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5])
    folder = write_shar(tmp_path / "shar", cuts)
    (folder / "recording.000000.tar").unlink()
    item = {"cut_id": "u000", "recording": cuts[0].recording.to_dict()}
    (folder / "recording.000000.jsonl").write_text(json.dumps(item) + "\n")
    (cut,) = read(folder)
    assert isinstance(cut, MonoCut) and AudioLoader(16_000)(cut).numel() == 8000
    (folder / "recording.000000.jsonl").write_text(json.dumps({"cut_id": "u000"}) + "\n")
    (refused,) = read(folder)
    assert isinstance(refused, Refused) and "has no recording" in refused.reason
    (folder / "recording.000000.jsonl").write_text("{}\n")
    with pytest.raises(
        CorpusError, match=r"recording.000000.jsonl:1: not a Shar recording .*write the folder"
    ):
        read(folder)


def test_cut_without_audio_is_refused(tmp_path: Path) -> None:
    good, bare = make_cuts(tmp_path, [0.5, 0.4])
    folder = tmp_path / "shar"
    folder.mkdir()
    with SharWriter(str(folder), fields={"recording": "wav"}, shard_size=2) as writer:
        writer.write(good)
        bare.recording = None
        writer.write(bare)
    first, second = read(folder)
    assert isinstance(first, MonoCut)
    assert isinstance(second, Refused) and second.cut_id == "u001"


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere: no such Shar folder .*corpus.root"):
        read(tmp_path / "nowhere")
    cuts = make_cuts(tmp_path, [0.5, 0.4, 0.3])
    folder = write_shar(tmp_path / "shar", cuts)
    tar = folder / "recording.000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:9000])
    with pytest.raises(CorpusError, match=r"recording.000000.tar: .*write .*the folder again"):
        read(folder)
    tar.write_bytes((folder / "recording.000001.tar").read_bytes())
    with pytest.raises(
        CorpusError, match=r"cuts.000000.jsonl.gz:1: cut 'u000' meets 'u002' in .*write the folder"
    ):
        read(folder)
    tar.unlink()
    with pytest.raises(CorpusError, match=r"shards 000000 lack their .*copy it again"):
        read(folder)


def test_a_fault_of_one_cut_costs_that_cut_alone(tmp_path: Path) -> None:
    """In the cuts or in the recordings; a cut that is refused still takes its audio along."""
    folder = write_shar(tmp_path / "shar", make_cuts(tmp_path, [0.5, 0.4, 0.3]))
    cuts = folder / "cuts.000000.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(cuts.read_bytes()).decode().splitlines()]
    for change, words in (
        ({"duration": "0.5"}, 'duration is "0.5", not a finite number'),
        ({"id": 17}, "id is 17, not text"),
        ({"custom": {"a": "\ud800"}}, "half of a surrogate pair"),
    ):
        text = json.dumps(lines[0] | change) + "\n" + json.dumps(lines[1]) + "\n"
        cuts.write_bytes(gzip.compress(text.encode()))
        first, second, third = read(folder)
        assert isinstance(first, Refused) and first.reason.startswith(f"{cuts}:1: ") and words in first.reason
        assert [cut.id for cut in (second, third) if isinstance(cut, MonoCut)] == ["u001", "u002"]
        assert [AudioLoader(16_000)(cut).numel() for cut in (second, third)] == [6400, 4800]
    cuts.write_bytes(gzip.compress(b"{torn\n" + json.dumps(lines[1]).encode()))
    first, second, _ = read(folder)
    assert isinstance(first, Refused) and first.reason.startswith(f"{cuts}:1: not a Lhotse cut (")
    assert isinstance(second, MonoCut) and AudioLoader(16_000)(second).numel() == 6400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampling_rate": 0}, "recording.sampling_rate is 0"),
        ({"duration": 7.0}, "recording.duration is 7.0, not the 0.500 s of its num_samples 8000"),
        ({"id": None}, "recording.id is null"),
        ({"channel_ids": "a"}, 'channels is "a", not a list'),
        ("torn", "not a recording; write the folder again"),
    ],
)
def test_a_fault_of_one_recording_costs_that_cut_alone(
    tmp_path: Path, change: dict[str, object] | str, words: str
) -> None:
    folder = write_shar(tmp_path / "shar", make_cuts(tmp_path, [0.5, 0.4]))
    path = folder / "recording.000000.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
    name, content = members[1]
    members[1] = (name, b"{torn" if change == "torn" else json.dumps(json.loads(content) | change).encode())
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    refused, good = read(folder)
    assert isinstance(refused, Refused) and refused.cut_id == "u000" and words in refused.reason
    assert isinstance(good, MonoCut) and AudioLoader(16_000)(good).numel() == 6400


def test_audio_that_no_cut_names_is_not_lost_without_a_word(tmp_path: Path) -> None:
    folder = write_shar(tmp_path / "shar", make_cuts(tmp_path, [0.5, 0.4]))
    cuts = folder / "cuts.000000.jsonl.gz"
    first_line = gzip.decompress(cuts.read_bytes()).splitlines()[0]
    cuts.write_bytes(gzip.compress(first_line + b"\n"))
    good, lost = read(folder)
    assert isinstance(good, MonoCut) and isinstance(lost, Refused) and lost.cut_id == "u001"
    assert lost.reason == (
        f"{folder}/recording.000000.tar: has its audio, but {cuts} ends before; write the folder again"
    )


def test_a_planned_folder_that_moved(tmp_path: Path) -> None:
    """Parts of a tar file are named relative to the root as well."""
    write_shar(tmp_path / "shar", make_cuts(tmp_path / "audio", [0.5, 0.4]))
    corpus = Corpus(CorpusConfig(format="shar", root=str(tmp_path), train="shar"), sample_rate_hz=16_000)
    (tmp_path / "there").mkdir()
    lines = [cut_to_json(cut, root=corpus.root) for cut in corpus.cuts("train") if isinstance(cut, MonoCut)]
    assert len(lines) == 2 and str(tmp_path) not in "".join(lines)
    (tmp_path / "shar").rename(tmp_path / "there/shar")
    load = AudioLoader(16_000, root=f"{tmp_path}/there")
    assert [load(cut_from_json(line)).numel() for line in lines] == [8000, 6400]


def test_tar_that_shrank_after_planning(tmp_path: Path) -> None:
    folder = write_shar(tmp_path / "shar", make_cuts(tmp_path, [0.5]))
    (cut,) = read(folder)
    assert isinstance(cut, MonoCut)
    (folder / "recording.000000.tar").write_bytes(b"short")
    with pytest.raises(UtteranceError, match=r"u000: .*recording.000000.tar#bytes=512-\d+: no such audio"):
        AudioLoader(16_000)(cut)


@pytest.mark.integration
def test_in_s3(tmp_path: Path, s3_environment: S3Server) -> None:
    folder = write_shar(tmp_path / "shar", make_cuts(tmp_path, [0.5, 0.4, 0.3]))
    url = f"s3://{s3_environment.bucket}/shar"
    options = {"endpoint_url": s3_environment.endpoint_url}
    fs = fsspec.filesystem("s3", endpoint_url=s3_environment.endpoint_url)
    for path in folder.iterdir():
        fs.put(str(path), f"{url}/{path.name}")
    loader, local = AudioLoader(16_000, s3=options), AudioLoader(16_000)
    for remote, here in zip(read(url, options), read(folder), strict=True):
        assert isinstance(remote, MonoCut) and isinstance(here, MonoCut)
        assert remote.recording.sources[0].source.startswith(f"{url}/recording.00000")
        np.testing.assert_array_equal(loader(remote).numpy(), local(here).numpy())
