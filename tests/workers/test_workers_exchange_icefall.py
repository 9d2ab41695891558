"""An export for icefall, read back as its recipe reads it, and what is left out of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from exchange_fakes import (
    cut_in,
    left_out,
    make_coded_table,
    recording_of,
    to_icefall,
)
from lhotse import CutSet, Fbank, NumpyHdf5Writer, load_manifest_lazy
from lhotse.cut import CutSet as Cuts
from lhotse.cut import MonoCut
from lhotse.dataset import CutMix, K2SpeechRecognitionDataset
from lhotse.dataset.collation import collate_custom_field
from lhotse.dataset.input_strategies import PrecomputedFeatures
from workers_fakes import cut_of, write_manifest, write_sound

from mvqkd.workers.exchange.names import field_names


def extract_as_the_recipe(batch: dict) -> tuple:
    """What `train.py` of pruned_transducer_stateless6 does with a batch."""
    cuts = batch["supervisions"]["cut"]
    plain = [cut if isinstance(cut, MonoCut) else cut.tracks[0].cut for cut in cuts]
    return collate_custom_field(plain, "codebook_indexes", pad_value=-100)


@pytest.fixture
def speech(tmp_path: Path) -> list[MonoCut]:
    """Cuts with features as icefall prepares them: of whole files, one from 1.3 s on, all at three speeds."""
    whole = [cut_of(write_sound(tmp_path / f"audio/u{i}.wav", 2.0 + 0.7 * i)) for i in range(3)]
    later = cut_of(write_sound(tmp_path / "audio/long.wav", 6.0), start=1.3, duration=2.56)
    cuts = [*whole, later]
    cuts += [cut.perturb_speed(factor) for factor in (0.9, 1.1) for cut in cuts]
    features = CutSet.from_cuts(cuts).compute_and_store_features(
        Fbank(), str(tmp_path / "fbank"), num_jobs=1, storage_type=NumpyHdf5Writer, progress_bar=False
    )
    return list(features)


def test_a_batch_of_the_recipe_has_every_code(tmp_path, speech):
    table, codes = make_coded_table(tmp_path / "table", speech)
    shuffled = [speech[i] for i in np.random.default_rng(1).permutation(len(speech))]
    manifest = write_manifest(tmp_path / "librispeech_cuts_train.jsonl", shuffled)
    report = to_icefall(tmp_path / "out", [table], [manifest], file_bytes=4000)
    assert (report["cuts"], report["exported"], report["frames_not_read"]) == (12, 12, 0)
    assert report["notes"] == []
    cuts = load_manifest_lazy(tmp_path / "out/librispeech_cuts_train.jsonl")
    assert [cut.id for cut in cuts] == [cut.id for cut in shuffled]
    assert len(list((tmp_path / "out").glob("codebook_indexes.*.h5"))) > 1

    noise = CutSet.from_cuts([speech[0].drop_supervisions().with_id("noise")])
    mixed = CutMix(cuts=noise, p=0.5, snr=(10, 20), preserve_id=True)
    dataset = K2SpeechRecognitionDataset(
        return_cuts=True, cut_transforms=[mixed], input_strategy=PrecomputedFeatures()
    )
    batch = dataset[Cuts.from_cuts(list(cuts))]
    indexes_BTN, lengths_B = extract_as_the_recipe(batch)
    assert str(indexes_BTN.dtype) == "torch.int64" and indexes_BTN.shape[2] == 8
    for cut, index_TN, length in zip(batch["supervisions"]["cut"], indexes_BTN, lengths_B, strict=True):
        assert np.array_equal(index_TN[:length], codes[cut.id]), cut.id
        assert (index_TN[length:] == -100).all()
        assert length == len(codes[cut.id]), "a wrong start gives a part of them"


def test_the_field_is_what_icefall_writes(tmp_path, speech):
    table, _ = make_coded_table(tmp_path / "table", speech)
    to_icefall(tmp_path / "out", [table], [write_manifest(tmp_path / "cuts.jsonl.gz.jsonl", speech)])
    lines = (tmp_path / "out/cuts.jsonl.gz.jsonl").read_text().splitlines()
    before = {cut.id: cut.to_dict() for cut in speech}
    for line in map(json.loads, lines):
        field = line.pop("custom").pop("codebook_indexes")
        assert field["array"]["storage_type"] == "numpy_hdf5"
        assert field["array"]["storage_key"] == line["id"]
        assert (field["temporal_dim"], field["frame_shift"], field["start"]) == (0, 0.02, line["start"])
        assert line == json.loads(json.dumps(before[line["id"]])), "all else is as it was"


def test_other_custom_fields_and_unknown_ones_stay(tmp_path):
    cut = cut_in(recording_of("r", 2.0), 0.0, 2.0, name="a")
    cut.custom = {"shard": 7, "codebook_indexes": "old"}
    table, _ = make_coded_table(tmp_path / "table", [cut])
    line = {**cut.to_dict(), "nobody_knows": [1]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    to_icefall(tmp_path / "out", [table], [tmp_path / "m.jsonl"])
    written = json.loads((tmp_path / "out/m.jsonl").read_text())
    assert written["custom"]["shard"] == 7 and written["nobody_knows"] == [1]
    assert written["custom"]["codebook_indexes"]["array"]["shape"] == [99, 8]


def test_odd_cuts_get_their_own_codes_or_none(tmp_path):
    one, stereo = recording_of("one", 9.0), recording_of("two", 4.0, channels=2)
    coded = [
        cut_in(one, 0.0, 3.0, name="first"),
        cut_in(one, 3.0, 3.0, name="second"),
        cut_in(stereo, 0.0, 4.0, name="left", channel=0),
        cut_in(stereo, 0.0, 4.0, name="right", channel=1),
        cut_in(one, 0.0, 3.0, name="slow").perturb_speed(0.9),
    ]
    table, codes = make_coded_table(tmp_path / "table", coded, per_shard=2)
    fast = cut_in(one, 0.0, 3.0, name="first").perturb_speed(1.1)
    multi = {**coded[2].to_dict(), "id": "both", "channel": [0, 1], "type": "MultiCut"}
    bare = {k: v for k, v in coded[0].to_dict().items() if k != "recording"} | {"id": "bare"}
    manifest = [
        cut_in(one, 3.0 + 3e-6, 3.0, name="first").to_dict(),  # the id of another cut
        cut_in(one, 0.0, 3.0, name="renamed").to_dict(),
        cut_in(one, 0.0, 3.0, name="renamed").to_dict(),  # twice
        cut_in(stereo, 0.0, 4.0, name="r", channel=1).to_dict(),
        cut_in(stereo, 0.0, 4.0, name="l", channel=0).to_dict(),
        cut_in(one, 0.0, 3.0, name="s").perturb_speed(0.9, affix_id=False).to_dict(),
        cut_in(one, 0.5, 2.5, name="trimmed").to_dict(),
        cut_in(one, 0.02, 3.0, name="moved").to_dict(),
        {**fast.to_dict(), "id": "fast"},
        cut_in(recording_of("three", 3.0), 0.0, 3.0, name="missing").to_dict(),
        cut_in(recording_of("one_sp0.9", 3.0), 0.0, 3.0, name="only-called-slow").to_dict(),
        multi,
        bare,
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(cut) + "\n" for cut in manifest) + "{broken\n")
    report = to_icefall(tmp_path / "out", [table], [path])
    assert report["left_out"] == {"missing": 2, "stale": 3, "unusable": 3}
    assert (report["cuts"], report["exported"]) == (14, 6)
    found = list(CutSet.from_file(tmp_path / "out/m.jsonl"))
    wanted = ["second", "first", "first", "right", "left", slow_id(coded)]
    for cut, name in zip(found, wanted, strict=True):
        assert np.array_equal(cut.load_custom("codebook_indexes"), codes[name]), cut.id
    reasons = left_out(tmp_path / "out")
    assert {name for name, line in reasons.items() if line["kind"] == "stale"} == {"trimmed", "moved", "fast"}
    assert "from 0 s, 3 s long, channel 0, the cut is from 0.5 s" in reasons["trimmed"]["reason"]
    assert "at speed 1.1" in reasons["fast"]["reason"]
    assert reasons["missing"]["line"] == 10 and reasons["missing"]["cuts"] == str(path)
    assert "split the cut" in reasons["both"]["reason"] or "MultiCut" in reasons["both"]["reason"]
    assert "has no recording" in reasons["bare"]["reason"]


def slow_id(coded: list[MonoCut]) -> str:
    return coded[-1].id


@pytest.mark.parametrize("seed", range(4))
def test_any_cuts_get_exactly_the_codes_of_their_audio(tmp_path, seed):
    """Random segments, channels and speeds, with ids that say nothing, against a search through all rows."""
    rng = np.random.default_rng(seed)
    recordings = [recording_of(f"r{i}", 10.0, channels=2) for i in range(4)]

    def random_cut(number: int) -> MonoCut:
        start, duration = rng.integers(0, 6) / 2, 1.0 + rng.integers(0, 3) / 2
        cut = cut_in(
            recordings[rng.integers(4)], start, duration, name=f"c{number}", channel=int(rng.integers(2))
        )
        return cut.perturb_speed(rng.choice([0.9, 1.1])) if rng.random() < 0.3 else cut

    coded = {key(cut): cut for cut in map(random_cut, range(60))}
    table, codes = make_coded_table(tmp_path / "table", list(coded.values()), per_shard=7, seed=seed)
    asked = [random_cut(number).with_id(f"c{rng.integers(60)}") for number in range(100, 180)]
    report = to_icefall(tmp_path / "out", [table], [write_manifest(tmp_path / "m.jsonl", asked)])
    expected = [coded[key(cut)].id for cut in asked if key(cut) in coded]
    found = list(CutSet.from_file(tmp_path / "out/m.jsonl"))
    assert [cut.id for cut in found] == [cut.id for cut in asked if key(cut) in coded]
    for cut, name in zip(found, expected, strict=True):
        assert np.array_equal(cut.load_custom("codebook_indexes"), codes[name])
    assert report["exported"] == len(expected) < report["cuts"] == 80


def key(cut: MonoCut) -> tuple:
    speed = [t.factor for t in cut.recording.transforms or []]
    return cut.recording.id, cut.channel, round(cut.start, 6), round(cut.duration, 6), *speed


def test_the_tables_own_cuts(tmp_path, speech):
    table, codes = make_coded_table(tmp_path / "table", [c.drop_features() for c in speech])
    report = to_icefall(tmp_path / "out", [table], [])
    assert report["exported"] == 12 and report["manifests"] == ["cuts.jsonl.gz"]
    for cut in CutSet.from_file(tmp_path / "out/cuts.jsonl.gz"):
        assert np.array_equal(cut.load_custom("codebook_indexes"), codes[cut.id])
        assert cut.load_audio().shape[1] == cut.num_samples


def test_several_layers_and_teachers_have_the_names_of_later_recipes(tmp_path):
    cuts = [cut_in(recording_of(f"r{i}", 2.0), 0.0, 2.0, name=f"c{i}") for i in range(4)]
    one, codes = make_coded_table(tmp_path / "a", cuts, layer=6, num_codebooks=4)
    two, others = make_coded_table(tmp_path / "b", cuts[:3], layer=12, num_codebooks=16, seed=1)
    fields = field_names([one.contract, two.contract], [])
    assert fields == ("codebook_indexes_layer6_cb4", "codebook_indexes_layer12_cb16")
    report = to_icefall(
        tmp_path / "out", [one, two], [write_manifest(tmp_path / "m.jsonl", cuts)], fields=fields
    )
    assert report["exported"] == 3 and left_out(tmp_path / "out")["c3"]["kind"] == "missing"
    assert len(report["notes"]) == 2
    loaded = list(CutSet.from_file(tmp_path / "out/m.jsonl"))
    for field, wanted in zip(fields, (codes, others), strict=True):
        indexes_BTN, _ = collate_custom_field(loaded, field, pad_value=-100)
        for cut, index_TN in zip(loaded, indexes_BTN, strict=True):
            assert np.array_equal(index_TN, wanted[cut.id])


def test_ids_that_are_no_names_in_an_hdf5_file(tmp_path):
    names = ["a", "a/b", "..", "a%2Fb", "nul\0", "ä ö"]
    cuts = [cut_in(recording_of(f"r{i}", 2.0), 0.0, 2.0, name=name) for i, name in enumerate(names)]
    table, codes = make_coded_table(tmp_path / "table", cuts, per_shard=10)
    to_icefall(tmp_path / "out", [table], [write_manifest(tmp_path / "m.jsonl", cuts)])
    found = list(CutSet.from_file(tmp_path / "out/m.jsonl"))
    assert [cut.id for cut in found] == names
    for cut in found:
        assert np.array_equal(cut.load_custom("codebook_indexes"), codes[cut.id])


def test_the_same_id_in_two_shards(tmp_path):
    cuts = [cut_in(recording_of(f"r{i}", 2.0), 0.0, 2.0, name=f"c{i}") for i in range(2)]
    table, codes = make_coded_table(tmp_path / "table", cuts[:1], per_shard=1)
    other, others = make_coded_table(tmp_path / "other", [cuts[1].with_id("c0")], per_shard=1, seed=1)
    table.location.write_once("shard-1.parquet", other.location.read_bytes("shard-0.parquet"))
    to_icefall(tmp_path / "out", [table], [write_manifest(tmp_path / "m.jsonl", cuts)])
    first, second = CutSet.from_file(tmp_path / "out/m.jsonl")
    assert np.array_equal(first.load_custom("codebook_indexes"), codes["c0"])
    assert np.array_equal(second.load_custom("codebook_indexes"), others["c0"])


def test_more_frames_than_lhotse_reads_are_counted(tmp_path):
    """A teacher may have a frame more than a cut has by Lhotse's rounding; it is told, and nothing else is lost."""
    cut = cut_in(recording_of("r", 2.0), 0.0, 2.0, name="a")
    table, codes = make_coded_table(tmp_path / "table", [cut], frame_rate_hz=49.0)
    report = to_icefall(tmp_path / "out", [table], [write_manifest(tmp_path / "m.jsonl", [cut])])
    (found,) = CutSet.from_file(tmp_path / "out/m.jsonl")
    assert report["frames_not_read"] == 1
    assert np.array_equal(found.load_custom("codebook_indexes"), codes["a"][:98])
