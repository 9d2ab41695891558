"""Long audio in windows: they cover it, their frames are those of the whole, and everybody loads the kept part."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy
from workers_fakes import (
    RATE,
    FakeTeacher,
    cut_of,
    make_contract,
    make_embedder,
    make_quantizer,
    write_sound,
)
from workers_fakes import make_plan as make_plan_of

from mvqkd.models.quantizer import rrl
from mvqkd.models.teachers import Teacher, load_teacher
from mvqkd.storage.location import open_location
from mvqkd.storage.rows import check_row_matches
from mvqkd.storage.table import IndexTable
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.cuts import Refused, cut_from_json, cut_to_json, identity
from mvqkd.workers.embed import Embedded, Embedder
from mvqkd.workers.extract import Extractor
from mvqkd.workers.planner import make_plan
from mvqkd.workers.windows import context_of, heard, kept_frames, on_grid, windows_of


def bare(path: Path, *, start: float = 0.0, duration: float | None = None) -> MonoCut:
    """A cut without supervisions."""
    return fastcopy(cut_of(path, start=start, duration=duration), supervisions=[])


def long_cut(seconds: float, start: float = 0.0) -> MonoCut:
    """Without audio."""
    samples = round((start + seconds) * RATE)
    recording = Recording("r", [AudioSource("file", [0], "/r.wav")], RATE, samples, samples / RATE)
    return MonoCut("r", start, seconds, 0, recording=recording)


@pytest.mark.parametrize("seconds", [30.001, 31.0, 52.0, 52.0125, 78.0, 78.1, 3600.0, 1234.5678])
@pytest.mark.parametrize(("window_s", "overlap_s"), [(30.0, 2.0), (10.0, 0.2), (30.0, 3.7)])
@pytest.mark.parametrize("start", [0.0, 1.23])
def test_windows_cover_the_cut(seconds: float, window_s: float, overlap_s: float, start: float) -> None:
    cut = long_cut(seconds, start)
    windows = windows_of(cut, window_s=window_s, overlap_s=overlap_s)
    assert len(windows) > 1 and [w.id for w in windows[:2]] == ["r-w00000", "r-w00001"]
    ends = [window.end for window in windows]
    assert windows[0].start == cut.start and ends[-1] == pytest.approx(cut.end, abs=1e-9)
    assert [w.start for w in windows[1:]] == pytest.approx(ends[:-1], abs=1e-9)
    for number, window in enumerate(windows):
        offset = (window.start - cut.start) * 5
        assert offset == pytest.approx(round(offset), abs=1e-6)
        whole = heard(window)
        assert whole.duration <= window_s + 1e-9
        assert cut.start - 1e-9 <= whole.start and whole.end <= cut.end + 1e-9
        before_s, after_s = context_of(window)
        assert before_s == (0 if number == 0 else on_grid(overlap_s) / 5)
        assert after_s > 0 or window is windows[-1]
    lengths = [window.duration for window in windows]
    assert max(lengths) - min(lengths) < 0.4 + 1e-9
    again = cut_from_json(cut_to_json(windows[1]))
    assert (heard(again), context_of(again)) == (heard(windows[1]), context_of(windows[1]))


def test_supervisions_without_text_keep_their_place() -> None:
    cut = long_cut(40.0)
    cut.supervisions = [
        SupervisionSegment("a", "r", 5.0, 10.0, speaker="ann"),
        SupervisionSegment("b", "r", 18.0, 4.0, speaker="bob"),
    ]
    first, second = windows_of(cut, window_s=30.0, overlap_s=2.0)
    assert [(s.id, s.start) for s in first.supervisions] == [("a", 5.0), ("b", 18.0)]
    assert [(s.id, s.start) for s in second.supervisions] == [("b", -2.0)]
    cut.supervisions[0].text = "a cat"
    with pytest.raises(ValueError, match="r: has a text"):
        windows_of(cut, window_s=30.0, overlap_s=2.0)


def embedded(teacher: Teacher, cuts: list[MonoCut]) -> list[Embedded]:
    """In the order of the cuts."""
    embedder = Embedder(
        teacher, AudioLoader(teacher.info.sample_rate_hz), batch_seconds=60.0, decode_threads=1
    )
    found = {result.cut.id: result for result in embedder(cuts)}
    results = [found[cut.id] for cut in cuts]
    assert all(isinstance(result, Embedded) for result in results), results
    return results  # type: ignore[return-value]


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
@pytest.mark.parametrize("start", [0.0, 0.37])
def test_frames_of_windows_join_to_those_of_the_whole(tmp_path: Path, rate: int, start: float) -> None:
    """A teacher without memory: with enough context every frame is exactly that of the whole cut."""
    cut = bare(write_sound(tmp_path / "long.wav", 9.4321, rate=rate), start=start, duration=9.0123)
    windows = windows_of(cut, window_s=4.0, overlap_s=0.4)
    (whole,) = embedded(FakeTeacher(), [cut])
    parts = embedded(FakeTeacher(), windows)
    joined_TD = torch.cat([part.embeddings_TD for part in parts])
    assert joined_TD.shape == whole.embeddings_TD.shape
    # Another rate is resampled, whose filter sees the edge of what is heard.
    torch.testing.assert_close(joined_TD, whole.embeddings_TD, atol=1e-5 if rate == RATE else 1e-2, rtol=0)
    load = AudioLoader(RATE)
    assert [part.num_samples for part in parts] == [load(window).numel() for window in windows]
    assert sum(part.num_samples for part in parts) == whole.num_samples


def test_rows_of_windows(tmp_path: Path) -> None:
    """Their codes and losses are those of the kept frames alone, and their audio is the kept part."""
    cuts = windows_of(bare(write_sound(tmp_path / "long.wav", 6.2)), window_s=3.0, overlap_s=0.4)
    cuts.append(bare(write_sound(tmp_path / "short.wav", 1.1)))
    plan, (shard,) = make_plan_of(tmp_path / "plan", cuts, per_shard=9)
    table = IndexTable.create(open_location(str(tmp_path / "table")), make_contract())
    quantizer = make_quantizer()
    extractor = Extractor(embedder=make_embedder(batch_seconds=6.0), tables=[(table, quantizer)], plan=plan)
    extractor.run(shard)
    rows = {row["cut_id"]: row for row in table.iter_rows()}
    for cut, part in zip(cuts, embedded(FakeTeacher(), cuts), strict=True):
        row, x_TD = rows[cut.id], part.embeddings_TD
        codes_TN = quantizer.encode(x_TD, as_bytes=False)
        assert row["num_frames"] == len(x_TD) and np.array_equal(row["codes"], codes_TN.numpy())
        loss = rrl(x_TD, quantizer.decode(codes_TN), mean=quantizer.get_data_mean())
        assert row["rrl"] == pytest.approx(loss, rel=1e-4)
        loaded = cut_from_json(row["cut"])
        assert AudioLoader(RATE)(loaded).numel() == row["num_samples"] == round(cut.duration * RATE)
        check_row_matches(row, **identity(loaded, row["num_samples"]))


def test_frames_join_with_a_transformer(tmp_path: Path, teacher_path: Path) -> None:
    cut = bare(write_sound(tmp_path / "long.wav", 12.345))
    teacher = load_teacher(str(teacher_path))
    (whole,) = embedded(teacher, [cut])
    parts = embedded(teacher, windows_of(cut, window_s=6.0, overlap_s=1.0))
    assert sum(len(part.embeddings_TD) for part in parts) == len(whole.embeddings_TD)


@pytest.mark.shared
def test_windows_of_real_speech_with_whisper(tmp_path: Path, shared: Path) -> None:
    """As many frames as the whole, in the whole's order: each is nearest to its own place."""
    files = sorted((shared / "corpora/an4/audio/test").glob("*.flac"))[:8]
    audio = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])[: 20 * RATE]
    soundfile.write(tmp_path / "long.wav", audio, RATE, subtype="FLOAT")
    teacher = load_teacher(str(shared / "teachers/whisper-base-encoder"), layer=3)
    cut = bare(tmp_path / "long.wav")
    (whole,) = embedded(teacher, [cut])
    parts = embedded(teacher, windows_of(cut, window_s=12.0, overlap_s=2.0))
    joined_TD = torch.cat([part.embeddings_TD for part in parts])
    assert joined_TD.shape == whole.embeddings_TD.shape
    error = [
        float((joined_TD[2:-2] - whole.embeddings_TD.roll(shift, 0)[2:-2]).square().mean())
        for shift in (-2, -1, 0, 1, 2)
    ]
    assert error.index(min(error)) == 2, error


def test_frames_that_do_not_fit_the_grid_are_refused() -> None:
    teacher = FakeTeacher()
    window = windows_of(long_cut(40.0), window_s=30.0, overlap_s=1.0)[1]
    odd = fastcopy(teacher.info, frame_shift_samples=333)
    with pytest.raises(ValueError, match=r"333 samples at 16000 Hz, do not divide the 0.2 s"):
        kept_frames(window, odd)


def corpus_of(root: Path, **settings: object) -> Corpus:
    config = CorpusConfig.model_validate(
        {"format": "cuts", "root": str(root), "train": "c.jsonl", "max_duration_s": 4.0, "window_s": 4.0,
         "window_overlap_s": 0.4} | settings
    )  # fmt: skip
    return Corpus(config, sample_rate_hz=RATE)


def ids(corpus: Corpus) -> list[str]:
    return [one.cut_id if isinstance(one, Refused) else one.id for one in corpus.cuts("train")]


def test_a_manifest_of_recordings_and_long_cuts(tmp_path: Path) -> None:
    talk = bare(write_sound(tmp_path / "talk.wav", 7.0))
    stereo = cut_of(write_sound(tmp_path / "stereo.wav", 1.0, channels=2)).recording
    said = cut_of(write_sound(tmp_path / "said.wav", 5.0))
    lines = [
        talk.to_dict(), talk.recording.to_dict() | {"id": "rec"}, stereo.to_dict(), said.to_dict(),
        {**talk.recording.to_dict(), "id": "bad", "num_samples": 5},
    ]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = list(corpus_of(tmp_path, channel=1).cuts("train"))
    assert [one.id for one in found[:5]] == [
        "talk-w00000",
        "talk-w00001",
        "talk-w00002",
        "rec-w00000",
        "rec-w00001",
    ]
    mono, long, bad = found[6:]
    assert isinstance(mono, MonoCut) and (mono.id, mono.channel) == ("stereo", 1)
    assert isinstance(long, Refused) and "lasts 5.00 s, more than" in long.reason
    assert "has a text, which nobody can split; cut it at the ends of supervisions" in long.reason
    assert isinstance(bad, Refused) and bad.cut_id == "bad" and "c.jsonl:5: recording.duration" in bad.reason
    assert list(corpus_of(tmp_path, channel=1).planned("train"))[-1] == bad
    # Without windows a long cut says what would take it, and recordings are no cuts.
    (tmp_path / "c.jsonl").write_text(json.dumps(talk.to_dict()) + "\n")
    (alone,) = corpus_of(tmp_path, window_s=None).cuts("train")
    assert isinstance(alone, Refused) and "set corpus.window_s to use it in windows" in alone.reason
    (tmp_path / "c.jsonl").write_text(json.dumps(stereo.to_dict()) + "\n")
    with pytest.raises(CorpusError, match=r"a Recording, not a Lhotse cut \(with corpus.window_s set"):
        list(corpus_of(tmp_path, window_s=None).cuts("train"))


def test_a_folder_without_transcripts(tmp_path: Path) -> None:
    write_sound(tmp_path / "audio/train/b.wav", 5.0)
    write_sound(tmp_path / "audio/train/a.FLAC", 1.0)
    (tmp_path / "audio/train/notes.txt").write_text("no audio")
    corpus = corpus_of(tmp_path, format="folder", train="train")
    assert ids(corpus) == ["a", "b-w00000", "b-w00001"]
    assert not [s for cut in corpus.cuts("train") if isinstance(cut, MonoCut) for s in cut.supervisions]
    with pytest.raises(CorpusError, match=r"audio/dev: no audio files, and no transcripts.tsv"):
        ids(corpus_of(tmp_path, format="folder", train="dev"))
    with pytest.raises(CorpusError, match=r"transcripts.tsv: no such file"):
        ids(corpus_of(tmp_path, format="folder", train="train", window_s=None))


def test_windows_are_planned_as_other_cuts(tmp_path: Path) -> None:
    talk = bare(write_sound(tmp_path / "talk.wav", 7.0))
    (tmp_path / "c.jsonl").write_text(json.dumps(talk.to_dict()) + "\n")
    corpus = corpus_of(tmp_path)
    location = open_location(str(tmp_path / "plan"))
    plan = make_plan(corpus.planned("train"), location, shard_hours=1.0, settings={}, root=corpus.root)
    assert (plan.num_cuts, plan.num_text_dropped) == (3, 0)
    assert plan.hours == pytest.approx(7.0 / 3600)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window_s": 31.0}, "window_s 31 is more than max_duration_s 30"),
        (
            {"window_s": 10.0, "window_overlap_s": 4.5},
            "leaves less than 2 s between two times window_overlap_s 4.5",
        ),
    ],
)
def test_impossible_windows_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CorpusConfig.model_validate({"format": "cuts", **settings})


def test_settings_without_windows_are_those_of_old_plans() -> None:
    old = CorpusConfig(format="cuts").plan_settings("train", sample_rate_hz=RATE)
    new = CorpusConfig(format="cuts", window_s=30.0).plan_settings("train", sample_rate_hz=RATE)
    assert "window" not in json.dumps(old) and new["corpus"] == {
        **old["corpus"], "window_s": 30.0, "window_overlap_s": 2.0,
    }  # fmt: skip
