"""Fields of cut manifests: what each fault is called, and that it costs its own cut alone."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lhotse import MonoCut
from workers_fakes import make_cuts

from mvqkd.storage.location import open_location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.cuts import Refused, text_of
from mvqkd.workers.plan import read_refused, read_shard_cuts
from mvqkd.workers.planner import make_plan

Change = Callable[[dict[str, Any]], None]


def corpus_of(path: Path, **settings: Any) -> Corpus:
    return Corpus(
        CorpusConfig(format="cuts", root=str(path.parent), train=path.name, **settings), sample_rate_hz=16_000
    )


def write_lines(tmp_path: Path, change: Change | None = None) -> Path:
    """A manifest of five cuts; the third one is changed."""
    lines = [cut.to_dict() for cut in make_cuts(tmp_path, [0.5, 0.4, 0.6, 0.3, 0.35])]
    if change is not None:
        change(lines[2])
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def setting(field: str, value: Any) -> Change:
    """Set a field given as a path, such as supervisions.0.text."""

    def change(cut: dict[str, Any]) -> None:
        *parents, name = field.split(".")
        inner: Any = cut
        for parent in parents:
            inner = inner[int(parent) if parent.isdigit() else parent]
        inner[name] = value

    return change


def lasting(start: float, duration: float) -> Change:
    return lambda cut: cut.update(start=start, duration=duration)


def without(field: str) -> Change:
    def change(cut: dict[str, Any]) -> None:
        del cut[field]

    return change


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


RIR = {"type": "MonoCut", "id": "r", "start": 0, "duration": 1, "channel": 0, "recording": {"id": "r"}}
FAULTS: list[tuple[str, Any, str]] = [
    ("id", 17, "id is 17, not text"),
    ("id", "", 'id is "", not text'),
    ("id", None, "id is null, not text"),
    ("start", "0", 'start is "0", not a finite number'),
    ("start", True, "start is true, not a finite number"),
    ("start", 10**400, "start is 1000"),
    ("duration", math.nan, "duration is NaN, not a finite number"),
    ("duration", -math.inf, "duration is -Infinity, not a finite number"),
    ("duration", "2.6", 'duration is "2.6", not a finite number'),
    ("duration", [1], "duration is [1], not a finite number"),
    ("duration", -0.5, "duration is -0.5, not a number of seconds from 0 on"),
    ("channel", None, "channel is null, not the number of a channel"),
    ("channel", [0], "channel is [0], not the number of a channel"),
    ("channel", -1, "channel is -1, not the number of a channel"),
    ("channel", False, "channel is false, not the number of a channel"),
    ("channel", 3, "is of channel 3, which is not among its recording's [0]"),
    ("supervisions", None, "supervisions is null, not a list"),
    ("supervisions", [7], "supervisions[0] is 7, not a supervision"),
    ("supervisions.0.id", 17, "supervisions[0].id is 17, not text"),
    ("supervisions.0.recording_id", None, "supervisions[0].recording_id is null, not text"),
    ("supervisions.0.text", 42, "supervisions[0].text is 42, not text"),
    ("supervisions.0.text", ["A"], 'supervisions[0].text is ["A"], not text'),
    ("supervisions.0.text", "SO LONG \ud83d", 'supervisions[0].text is "SO LONG \\ud83d", not text: half of'),
    ("supervisions.0.speaker", 3, "supervisions[0].speaker is 3, not text"),
    ("supervisions.0.start", math.inf, "supervisions[0].start is Infinity, not a finite number"),
    ("supervisions.0.duration", -1, "supervisions[0].duration is -1, not a number of seconds"),
    ("supervisions.0.channel", None, "supervisions[0].channel is null, not the number"),
    ("supervisions.0.channel", ["a"], 'supervisions[0].channel is ["a"], not a list of the numbers'),
    ("supervisions.0.unheard_of", 1, "not a cut that Lhotse reads (TypeError: "),
    ("custom", {"\udcff": 1}, 'the name of custom.\\udcff is "\\udcff", not text'),
    ("custom", {"a": deep(60)}, 'the cut is "u002", not nested at most 50 levels deep'),
    ("custom", [1], "not a cut that Lhotse reads (AttributeError: "),
    ("custom", {"a": {"width": 3}}, "not a cut that Lhotse reads ("),
    ("features", {"type": "fbank"}, "not a cut that Lhotse reads ("),
    ("recording", 5, "recording is 5, not a recording"),
    ("recording", None, "has no recording; the manifest must name its audio"),
    ("recording.id", 5, "recording.id is 5, not text"),
    ("recording.sampling_rate", 0, "recording.sampling_rate is 0, not a number of samples per second"),
    ("recording.sampling_rate", 16000.5, "recording.sampling_rate is 16000.5, not a number"),
    (
        "recording.num_samples",
        16000,
        "recording.duration is 0.6, not the 1.000 s of its num_samples 16000 at 16000",
    ),
    ("recording.num_samples", -5, "recording.num_samples is -5, not a number of samples"),
    ("recording.duration", math.nan, "recording.duration is NaN, not a finite number"),
    ("recording.sources", [], "recording.sources is [], not a list of at least one source"),
    ("recording.sources", None, "recording.sources is null, not a list of at least one source"),
    ("recording.sources.0.source", 9, "recording.sources[0].source is 9, not text"),
    ("recording.sources.0.source", "a\0b", 'recording.sources[0].source is "a\\u0000b", not a path without'),
    (
        "recording.sources.0.type",
        "memory",
        'recording.sources[0].type is "memory", not one of file, url, command',
    ),
    ("recording.sources.0.type", "shar", 'set corpus.format to "shar"'),
    ("recording.sources.0.channels", [], "recording.sources[0].channels is [], not a list of the numbers"),
    (
        "recording.sources.0.channels",
        [0, 0],
        "recording.sources[0].channels is [0, 0], not a list of different",
    ),
    ("recording.channel_ids", "a", 'recording.channel_ids is "a", not a list'),
    ("recording.transforms", {"name": "Speed"}, "recording.transforms is {"),
    (
        "recording.transforms",
        [{"name": "Speed"}],
        'recording.transforms[0] is {"name": "Speed"}, not a transform',
    ),
    ("recording.transforms", [{"name": "Foo", "kwargs": {}}], "Unknown transform type: Foo"),
    # Lhotse drops all transforms of a recording when one of them lacks what it looks for.
    (
        "recording.transforms",
        [
            {"name": "Volume", "kwargs": {"factor": 0.5}},
            {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": RIR}},
        ],
        "not a cut that Lhotse reads (ValueError: a field of one of the recording's transforms is missing)",
    ),
    ("type", "MixedCut", "is a MixedCut; only plain cuts of one recording can be used"),
    ("type", "Supervision", 'not a Lhotse cut (type "Supervision")'),
]


@pytest.mark.parametrize(("field", "value", "problem"), FAULTS)
def test_a_fault_of_a_field_costs_that_cut_alone(
    tmp_path: Path, field: str, value: Any, problem: str
) -> None:
    path = write_lines(tmp_path, setting(field, value))
    found = list(corpus_of(path).cuts("train"))
    refused = found.pop(2)
    assert [cut.id for cut in found if isinstance(cut, MonoCut)] == ["u000", "u001", "u003", "u004"]
    assert isinstance(refused, Refused) and problem in refused.reason
    has_place = refused.reason.startswith(f"{path}:3: ")
    assert has_place or refused.cut_id == "u002"
    # And whatever it holds can be written down.
    plan = make_plan(
        corpus_of(path).cuts("train"), open_location(str(tmp_path / "plan")), shard_hours=1.0, settings={}
    )
    assert (plan.num_cuts, read_refused(plan.location)) == (4, [refused])


@pytest.mark.parametrize("field", ["id", "start", "duration", "channel", "type"])
def test_a_field_that_is_missing_costs_that_cut_alone(tmp_path: Path, field: str) -> None:
    path = write_lines(tmp_path, without(field))
    found = list(corpus_of(path).cuts("train"))
    refused = found.pop(2)
    assert len(found) == 4 and all(isinstance(cut, MonoCut) for cut in found)
    assert isinstance(refused, Refused) and refused.reason.startswith(f"{path}:3: ")


def test_duration_of_what_is_refused(tmp_path: Path) -> None:
    """Hours that are not decoded have to be counted."""
    path = write_lines(tmp_path)
    found = list(corpus_of(path, max_duration_s=0.45).cuts("train"))
    assert [cut.duration_s for cut in found if isinstance(cut, Refused)] == [0.5, 0.6]
    path = write_lines(tmp_path, setting("supervisions.0.text", 3))
    assert [cut.duration_s for cut in corpus_of(path).cuts("train") if isinstance(cut, Refused)] == [0.6]
    path = write_lines(tmp_path, setting("duration", math.nan))
    assert [cut.duration_s for cut in corpus_of(path).cuts("train") if isinstance(cut, Refused)] == [None]


def test_what_is_odd_but_harmless_is_taken(tmp_path: Path) -> None:
    def change(cut: dict[str, Any]) -> None:
        cut["custom"] = {"snr": math.nan, "tags": ["a"], "nested": deep(20)}
        cut["supervisions"][0] |= {"language": 7, "text": "ok \U0001f600", "speaker": None}
        cut["recording"] |= {"sampling_rate": 16000.0, "channel_ids": None}
        cut["type"] = "Cut"

    found = list(corpus_of(write_lines(tmp_path, change)).cuts("train"))
    assert all(isinstance(cut, MonoCut) for cut in found)
    assert isinstance(found[2], MonoCut) and text_of(found[2]) == "ok \U0001f600"
    assert AudioLoader(16_000)(found[2]).numel() == 9600


def test_a_file_of_other_lines_is_no_manifest(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    good = path.read_text().splitlines(keepends=True)[0]
    path.write_text("RIFF\n" * 51 + good * 60)
    with pytest.raises(
        CorpusError,
        match=r"c.jsonl:1: not a Lhotse cut \(.*51 of the first 100 lines are no cuts\); give a manifest of cuts",
    ):
        list(corpus_of(path).cuts("train"))
    path.write_text("RIFF\n" * 50 + good * 60 + "RIFF\n" * 100)
    found = list(corpus_of(path).cuts("train"))
    assert sum(isinstance(cut, Refused) for cut in found) == 150 and len(found) == 210


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "{" * 10, '{"id": 1' + "0" * 5000 + "}", "null", "3", '"text"', "\ufeff{}"]
)
def test_lines_that_are_no_json_objects_cost_themselves_alone(tmp_path: Path, line: str) -> None:
    path = write_lines(tmp_path)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    *good, bad = corpus_of(path).cuts("train")
    assert len(good) == 5 and all(isinstance(cut, MonoCut) for cut in good)
    assert isinstance(bad, Refused) and bad.reason.startswith(f"{path}:6: not a Lhotse cut (")


def test_a_cut_that_leaves_its_recording(tmp_path: Path) -> None:
    for start, duration, words in (
        (0.3, 0.34, "ends at 0.640 s, after its recording, which ends at 0.600 s; correct"),
        (-0.2, 0.5, "starts at -0.200 s, before its recording, which starts at 0; correct"),
        (0.7, 0.3, "ends at 1.000 s, after its recording, which ends at 0.600 s"),
    ):
        path = write_lines(tmp_path, lasting(start, duration))
        refused = list(corpus_of(path).cuts("train"))[2]
        assert isinstance(refused, Refused) and words in refused.reason


def test_a_cut_that_leaves_its_recording_by_less_than_a_frame_is_clipped(tmp_path: Path) -> None:
    """Lhotse would fill it up with its mirror image, or move it."""
    whole = AudioLoader(16_000)(make_cuts(tmp_path, [0.5, 0.4, 0.6])[2])
    for start, duration, expected in ((0.3, 0.32, whole[4800:]), (-0.02, 0.5, whole[:7680])):
        path = write_lines(tmp_path, lasting(start, duration))
        cut = list(corpus_of(path).cuts("train"))[2]
        assert isinstance(cut, MonoCut) and cut.duration == expected.numel() / 16_000
        assert AudioLoader(16_000)(cut).equal(expected)


CASES = {
    "beyond-the-end": "ends at 1.200 s, after its recording, which ends at 0.900 s",
    "negative-start": "starts at -0.200 s",
    "nan-duration": "nan-duration.jsonl:3: duration is NaN",
    "text-duration": 'text-duration.jsonl:3: duration is "2.6"',
    "null-channel": "null-channel.jsonl:3: channel is null",
    "number-id": "number-id.jsonl:3: id is 17",
    "number-text": "number-text.jsonl:3: supervisions[0].text is 42",
    "lone-surrogate": "lone-surrogate.jsonl:3: supervisions[0].text is ",
    "random-reverb": "ReverbWithImpulseResponse has no impulse response",
    "tempo": "Tempo does not run here",
    "loudness": "pip install pyloudnorm",
}


@pytest.mark.shared
@pytest.mark.parametrize("name", CASES)
def test_cases_of_the_product(tmp_path: Path, shared: Path, name: str) -> None:
    root = shared / "corpora/an4"
    config = CorpusConfig(format="cuts", root=str(root), train=str(shared / f"cases/{name}.jsonl"))
    corpus = Corpus(config, sample_rate_hz=16_000)
    plan = make_plan(
        corpus.cuts("train"), open_location(str(tmp_path)), shard_hours=1.0, settings={}, root=corpus.root
    )
    (refused,) = read_refused(plan.location)
    assert CASES[name] in refused.reason
    load = AudioLoader(16_000, root=str(root))
    cuts = list(read_shard_cuts(plan.location, plan.shards[0]))
    assert len(cuts) == 5
    for cut in cuts:
        assert load(cut).numel() == round(cut.duration * 16_000) and text_of(cut)


@pytest.mark.shared
def test_windows_of_the_product(tmp_path: Path, shared: Path) -> None:
    config = CorpusConfig(
        format="cuts", root=str(shared / "corpora/an4"), train=str(shared / "cases/windows.jsonl"), test=None
    )
    corpus = Corpus(config, sample_rate_hz=16_000)
    plan = make_plan(
        corpus.cuts("train"), open_location(str(tmp_path)), shard_hours=1.0, settings={}, root=corpus.root
    )
    cuts = list(read_shard_cuts(plan.location, plan.shards[0]))
    lines = [json.loads(line) for line in (tmp_path / "text_dropped.jsonl").read_text().splitlines()]
    assert [line["cut_id"] for line in lines] == [cut.id for cut in cuts if text_of(cut) is None]
    assert plan.num_text_dropped == len(lines) > 0 and all("-w" in line["cut_id"] for line in lines)
