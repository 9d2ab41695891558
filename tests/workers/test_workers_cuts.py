"""What a cut is: its text, its line of JSON, and what reaches beyond its recording."""

import json
from pathlib import Path

import pytest
from lhotse import MonoCut, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem
from workers_fakes import cut_of, make_cuts, write_sound

from mvqkd.workers.cuts import (
    clipped,
    cut_from_json,
    cut_to_json,
    identity,
    speaker_of,
    text_of,
    text_problem,
)


def said(start: float, duration: float, text: str | None, **fields: object) -> SupervisionSegment:
    return SupervisionSegment("s", "r", start, duration, text=text, **fields)


def cut_with(tmp_path: Path, *supervisions: SupervisionSegment, channel: int = 0) -> MonoCut:
    cut = cut_of(write_sound(tmp_path / "a.wav", 2.0), start=0.5, duration=1.0)
    cut.supervisions, cut.channel = list(supervisions), channel
    return cut


def test_texts_in_time_order(tmp_path: Path) -> None:
    cut = cut_with(tmp_path, said(0.6, 0.4, "DOG"), said(0.0, 0.7, "CAT"), said(0.65, 0.1, None))
    assert text_of(cut) == "CAT DOG" and text_problem(cut) is None
    assert text_of(cut_with(tmp_path, said(0.0, 1.0, None))) is None
    assert text_of(cut_with(tmp_path)) is None and text_problem(cut_with(tmp_path)) is None
    assert text_of(cut_with(tmp_path, said(0.0, 1.0, ""))) == ""


@pytest.mark.parametrize(
    ("start", "duration", "inside"),
    [(0.0, 1.0, True), (-0.1, 1.2, True), (-0.11, 1.0, False), (0.0, 1.11, False), (0.5, 0.6, True), (3.0, 1.0, False)],
)  # fmt: skip
def test_text_of_a_supervision_that_reaches_beyond_the_cut(
    tmp_path: Path, start: float, duration: float, inside: bool
) -> None:
    cut = cut_with(tmp_path, said(0.2, 0.2, "CAT"), said(start, duration, "DOG"))
    assert (text_of(cut) is not None) == inside == (text_problem(cut) is None)
    if not inside:
        end = start + duration
        assert f"'s' lasts from {start:.2f} s to {end:.2f} s of a cut of 1.00 s" in str(text_problem(cut))
        assert "lhotse cut trim-to-supervisions" in str(text_problem(cut))


def test_only_texts_count(tmp_path: Path) -> None:
    """A supervision without a text, of a noise for instance, may reach where it likes."""
    cut = cut_with(tmp_path, said(0.2, 0.2, "CAT"), said(-1.0, 5.0, None), said(-1.0, 5.0, " "))
    assert text_problem(cut) is None
    cut.supervisions.pop()
    assert text_of(cut) == "CAT"


def test_windows_of_a_recording_have_no_text(tmp_path: Path) -> None:
    """The text of the whole would be the transcript of each window."""
    whole = cut_of(write_sound(tmp_path / "a.wav", 2.0), text="A CAT AND A DOG")
    windows = list(whole.cut_into_windows(0.8))
    assert len(windows) == 3 and [text_of(window) for window in windows] == [None] * 3
    assert text_of(whole.truncate(duration=1.95)) == "A CAT AND A DOG"
    assert text_of(whole.truncate(duration=1.5)) is None


def test_supervisions_of_another_channel_are_not_the_cuts(tmp_path: Path) -> None:
    mine = said(0.0, 1.0, "CAT", channel=1, speaker="ann")
    other = said(-2.0, 9.0, "DOG", channel=0, speaker="bob")
    cut = cut_with(tmp_path, other, mine, channel=1)
    assert (text_of(cut), speaker_of(cut), text_problem(cut)) == ("CAT", "ann", None)
    cut.supervisions = [said(0.0, 1.0, "BOTH", channel=[0, 1], speaker="eve")]
    assert (text_of(cut), speaker_of(cut)) == ("BOTH", "eve")
    cut.supervisions = [other]
    assert (text_of(cut), speaker_of(cut)) == (None, None)
    assert "'s' is of channel 0, the cut of channel 1; give both" in str(text_problem(cut))


def test_json_is_lhotses(tmp_path: Path) -> None:
    (cut,) = make_cuts(tmp_path, [0.5], texts=["ÉTÉ \u2028"])
    cut.supervisions[0].alignment = {
        "word": [AlignmentItem("a", 0.0, 0.1), AlignmentItem("b", 0.1, 0.2, 0.5)]
    }
    cut.supervisions[0].custom = {"snr": 3.5, "none": None, "list": [1, {"a": []}]}
    other = cut.perturb_speed(1.1).perturb_volume(0.5).resample(8000)
    other.custom = {"noise": cut.recording.perturb_speed(0.9), "tags": ("x", "y")}
    reverberant = cut.reverb_rir(cut.recording)
    for one in (cut, other, reverberant, cut.truncate(duration=0.2)):
        line = cut_to_json(one)
        assert line == json.dumps(one.to_dict(), ensure_ascii=False, separators=(",", ":"))
        assert cut_to_json(cut_from_json(line)) == line


def test_sources_under_the_root_are_relative(tmp_path: Path) -> None:
    (cut,) = make_cuts(tmp_path / "audio", [0.5])
    cut = cut.reverb_rir(cut.recording)
    path = cut.recording.sources[0].source

    def sources(root: str) -> list[str]:
        recording = json.loads(cut_to_json(cut, root=root))["recording"]
        return [
            recording["sources"][0]["source"],
            recording["transforms"][0]["kwargs"]["rir"]["sources"][0]["source"],
        ]

    assert sources(str(tmp_path)) == ["audio/u000.wav"] * 2
    assert sources(f"{tmp_path}/aud") == [path] * 2
    cut.recording.sources = [AudioSource("url", [0], "s3://bucket/x/a.wav")]
    assert json.loads(cut_to_json(cut, root="s3://bucket"))["recording"]["sources"] == [
        {"type": "file", "channels": [0], "source": "x/a.wav"}
    ]
    cut.recording.sources = [AudioSource("url", [0], "s3://bucket/x/r.tar#bytes=5-9")]
    assert json.loads(cut_to_json(cut, root="s3://bucket/x"))["recording"]["sources"] == [
        {"type": "url", "channels": [0], "source": "r.tar#bytes=5-9"}
    ]


def test_what_reaches_beyond_the_recording_is_clipped(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 0.5)
    whole = cut_of(path)
    assert clipped(whole) is whole
    rounded = cut_of(path, start=0.1, duration=0.40001)
    assert clipped(rounded) is rounded
    late = clipped(cut_of(path, start=0.1, duration=0.415))
    assert (late.start, late.duration) == (0.1, 0.4)
    assert identity(late, 6400)["duration"] == 0.4
    early = clipped(cut_of(path, start=-0.015, duration=0.3))
    assert (early.start, early.duration, early.supervisions[0].start) == (0.0, 0.285, -0.015)
    # A recording whose duration was rounded up ends where its samples end.
    whole.recording.duration, whole.duration = 0.51, 0.51
    assert clipped(whole).duration == 0.5
