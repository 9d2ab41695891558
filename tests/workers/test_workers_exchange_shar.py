"""Codes in Lhotse Shar folders, read back by Lhotse."""

from pathlib import Path

import numpy as np
import pytest
from exchange_fakes import cut_in, left_out, make_coded_table, recording_of, to_shar
from lhotse import CutSet
from lhotse.cut import MonoCut
from lhotse.dataset.collation import collate_custom_field
from lhotse.shar import SharWriter
from s3_server import S3Server
from workers_fakes import cut_of, write_manifest, write_sound

from mvqkd.storage.location import open_location
from mvqkd.workers.exchange.export import export
from mvqkd.workers.exchange.names import FIELD, ExportError
from mvqkd.workers.exchange.shar import SharTarget


@pytest.fixture
def speech(tmp_path: Path) -> list[MonoCut]:
    """Whole files, a cut that begins at 1.3 s, one of two channels, copies of other speeds."""
    cuts = [cut_of(write_sound(tmp_path / f"audio/u{i}.wav", 1.0 + 0.5 * i)) for i in range(3)]
    cuts.append(cut_of(write_sound(tmp_path / "audio/long.wav", 4.0), start=1.3, duration=2.0))
    stereo = cut_of(write_sound(tmp_path / "audio/stereo.wav", 1.5, channels=2)).drop_supervisions()
    stereo.channel = 1
    return [*cuts, stereo, cuts[0].perturb_speed(0.9), cuts[3].perturb_speed(1.1)]


@pytest.mark.parametrize("audio", [None, "wav"])
def test_lhotse_reads_every_code_and_the_same_audio(tmp_path, speech, audio):
    table, codes = make_coded_table(tmp_path / "table", speech)
    asked = [speech[i] for i in np.random.default_rng(2).permutation(len(speech))]
    manifest = write_manifest(tmp_path / "m.jsonl", asked)
    report = to_shar(tmp_path / "out", [table], [manifest], audio=audio, shard_cuts=3)
    assert report["exported"] == len(speech)
    names = sorted(path.name for path in (tmp_path / "out/shar").iterdir())
    kinds = {"cuts", FIELD, "recording"} if audio else {"cuts", FIELD}
    assert {name.split(".")[0] for name in names} == kinds and len(names) == 3 * len(kinds)
    cuts = list(CutSet.from_shar(in_dir=tmp_path / "out/shar"))
    assert [cut.id for cut in cuts] == [cut.id for cut in asked]
    indexes_BTN, lengths_B = collate_custom_field(cuts, FIELD, pad_value=-100)
    for cut, before, index_TN, length in zip(cuts, asked, indexes_BTN, lengths_B, strict=True):
        assert np.array_equal(index_TN[:length], codes[cut.id]), cut.id
        assert np.allclose(cut.load_audio(), before.load_audio(), atol=1e-4), cut.id
        assert cut.duration == before.duration
        assert [s.text for s in cut.supervisions] == [s.text for s in before.supervisions]


def test_codes_are_added_to_a_folder_that_is_shar(tmp_path, speech):
    """Its cuts begin at 0 in recordings of their own, so a table of it has them so too."""
    cuts = [cut for cut in speech if not cut.recording.transforms]
    (tmp_path / "theirs").mkdir()
    with SharWriter(tmp_path / "theirs", fields={"recording": "wav"}, shard_size=2) as writer:
        for cut in cuts:
            writer.write(cut)
    theirs = list(CutSet.from_shar(in_dir=tmp_path / "theirs"))
    coded = [cut_in(cut.recording, 0.0, cut.duration, name=cut.id, channel=cut.channel) for cut in theirs]
    coded = [cut for cut in coded if cut.id != "u1"]
    for cut in coded:
        cut.recording = recording_of(cut.recording.id, cut.duration, channels=2)
    table, codes = make_coded_table(tmp_path / "table", coded)
    report = to_shar(tmp_path / "out", [table], [tmp_path / "theirs"])
    assert report["exported"] == 4 and report["left_out"]["missing"] == 1
    fields = {
        name: sorted(map(str, (tmp_path / folder).glob(f"{name}.*")))
        for name, folder in (("cuts", "theirs"), ("recording", "theirs"), (FIELD, "out/shar"))
    }
    assert len(fields[FIELD]) == 3
    for cut, before in zip(CutSet.from_shar(fields=fields), theirs, strict=True):
        assert cut.id == before.id and cut.has_custom(FIELD) == (cut.id != "u1")
        if cut.id != "u1":
            assert np.array_equal(cut.load_custom(FIELD), codes[cut.id])
        assert np.array_equal(cut.load_audio(), before.load_audio())


def test_audio_that_cannot_be_read_is_left_out(tmp_path, speech):
    table, _ = make_coded_table(tmp_path / "table", speech)
    (tmp_path / "audio/u1.wav").write_bytes(b"torn")
    report = to_shar(tmp_path / "out", [table], [write_manifest(tmp_path / "m.jsonl", speech)], audio="flac")
    assert report["exported"] == len(speech) - 1 and report["left_out"]["unusable"] == 1
    assert "u1.wav" in left_out(tmp_path / "out")["u1"]["reason"]
    assert "u1" not in [cut.id for cut in CutSet.from_shar(in_dir=tmp_path / "out/shar")]


def test_relative_audio_is_found_under_the_root(tmp_path):
    write_sound(tmp_path / "corpus/a.wav", 1.0)
    cut = cut_in(recording_of("a", 1.0, path="a.wav"), 0.0, 1.0, name="a")
    table, codes = make_coded_table(tmp_path / "table", [cut])
    for audio in (None, "wav"):
        out = tmp_path / f"out-{audio}"
        to_shar(out, [table], [], audio=audio, root=str(tmp_path / "corpus"))
        (found,) = CutSet.from_shar(in_dir=out / "shar")
        assert found.load_audio().shape == (1, 16_000)
        assert np.array_equal(found.load_custom(FIELD), codes["a"])


def test_ids_that_lhotse_does_not_find_in_a_tar(tmp_path):
    names = ["a/b/c", "a.b", "./x", "a//b"]
    cuts = [cut_in(recording_of(f"r{i}", 1.0), 0.0, 1.0, name=name) for i, name in enumerate(names)]
    table, codes = make_coded_table(tmp_path / "table", cuts)
    to_shar(tmp_path / "out", [table], [write_manifest(tmp_path / "m.jsonl", cuts)])
    found = {cut.id: cut.load_custom(FIELD) for cut in CutSet.from_shar(in_dir=tmp_path / "out/shar")}
    assert set(found) == {"a/b/c", "a.b"} and set(left_out(tmp_path / "out")) == {"./x", "a//b"}
    assert all(np.array_equal(codes[name], value) for name, value in found.items())


def test_what_is_refused(tmp_path, speech):
    table, _ = make_coded_table(tmp_path / "table", speech)
    manifest = write_manifest(tmp_path / "m.jsonl", speech)
    (tmp_path / "theirs").mkdir()
    with pytest.raises(ExportError, match="one Shar folder, alone"):
        to_shar(tmp_path / "out", [table], [tmp_path / "theirs", manifest])
    with pytest.raises(ValueError, match="no cuts: give a manifest"):
        to_shar(tmp_path / "out1", [table], [tmp_path / "theirs"])
    to_shar(tmp_path / "out2", [table], [manifest], shard_cuts=2)
    with pytest.raises(ExportError, match="--force"):
        to_shar(tmp_path / "out2", [table], [manifest])
    to_shar(tmp_path / "out2", [table], [manifest], force=True)
    assert len(list((tmp_path / "out2/shar").iterdir())) == 2, "nothing of the four shards before"


@pytest.mark.integration
def test_from_and_to_s3(tmp_path, speech, s3_environment: S3Server):
    root = f"s3://{s3_environment.bucket}/exchange"
    local, codes = make_coded_table(tmp_path / "table", speech)
    from mvqkd.storage.table import IndexTable

    table = IndexTable.create(open_location(f"{root}/table"), local.contract)
    for name in local.committed():
        table.location.replace(f"{name}.parquet", local.location.read_bytes(f"{name}.parquet"))
    manifest = write_manifest(tmp_path / "m.jsonl", speech)
    open_location(root).replace("m.jsonl", manifest.read_bytes())
    target = SharTarget(open_location(f"{root}/out"), [table], [FIELD], [f"{root}/m.jsonl"], options={})
    assert export([table], [f"{root}/m.jsonl"], target, options={})["exported"] == len(speech)
    folder = open_location(f"{root}/out/shar")
    (tmp_path / "copy").mkdir()
    for name in folder.list():
        (tmp_path / "copy" / name).write_bytes(folder.read_bytes(name))
    for cut in CutSet.from_shar(in_dir=tmp_path / "copy"):
        assert np.array_equal(cut.load_custom(FIELD), codes[cut.id])
