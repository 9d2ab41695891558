"""Fuzzing of the quick way from a manifest's line to a plan's: what it writes is what the long way writes."""

import copy
import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from mvqkd.workers.corpus.config import CorpusConfig
from mvqkd.workers.corpus.lines import CutLines
from mvqkd.workers.corpus.paths import full_root
from tests.fuzz.json_mutations import mutate, spoil

ROOTS = ("/data/corpus", "/data/corpus", None, "/", "/a/../b", "/a//b", "s3://bucket/corpus", "relative/root")
PATHS = (
    *("audio/u0.wav", "/data/corpus/audio/u0.wav", "/elsewhere/u0.wav", "./u0.wav", "a/../u0.wav", "a//u0.wav"),
    *("/data/corpus//u0.wav", "/data/corpus/./u0.wav", "/data/corpus/", "/data/corpusu0.wav", "~/u0.wav"),
    *("s3://bucket/corpus/u0.wav", "file:///data/u0.wav", "~", "", "é\u2028.wav", ".hidden/u0.wav"),
    *("x.tar#bytes=0-9", "/data/corpus/x.tar#bytes=0-9"),
)  # fmt: skip
NUMBERS = (0, 0.0, -0.0, 1, 0.02, 1e-5, -1e-5, -0.02, 0.15, 3, 8000, 16000, 44100.0, 1e20, 30.0, 0.05)
BASE = {
    "id": "u0", "start": 0.0, "duration": 0.15, "channel": 0,
    "supervisions": [
        {
            "id": "s0", "recording_id": "r0", "start": 0.0, "duration": 0.15, "channel": 0, "text": "Ä \"cat\"",
            "language": "en", "speaker": "ann", "gender": "f",
        }
    ],
    "recording": {
        "id": "r0", "sources": [{"type": "file", "channels": [0], "source": "audio/u0.wav"}],
        "sampling_rate": 16000, "num_samples": 2400, "duration": 0.15, "channel_ids": [0],
    },
    "type": "MonoCut",
}  # fmt: skip


def check(data: st.DataObject) -> bool:
    """One line in one corpus; whether the quick way took it."""
    draw = data.draw
    config = CorpusConfig(
        format="cuts",
        root=draw(st.sampled_from(ROOTS)),
        train="c.jsonl",
        allow_upsampling=draw(st.booleans()),
    )
    rate_hz = draw(st.sampled_from((8000, 16000)))
    lines = CutLines(config, sample_rate_hz=rate_hz, frame_shift_s=0.02, root=full_root(config.root))
    line = json.dumps(_cut(data), ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 19)) == 0:
        line = spoil(line, draw)
    quick = lines.quick(line)
    if quick is not None:
        assert [quick] == lines.the_long_way(line, "c.jsonl:1"), line
    return quick is not None


def _cut(data: st.DataObject) -> Any:
    draw = data.draw
    cut: Any = copy.deepcopy(BASE)
    recording, supervision = cut["recording"], cut["supervisions"][0]
    if draw(st.booleans()):
        recording["sources"][0]["source"] = draw(st.sampled_from(PATHS))
    if draw(st.booleans()):
        del recording["channel_ids"]
    if draw(st.integers(0, 5)) == 0:
        stereo = draw(st.sampled_from(([0, 1], [1, 0], [2], [0, 0], [])))
        recording["sources"][0]["channels"] = stereo
        recording["channel_ids"] = draw(st.sampled_from((stereo, sorted(stereo), None)))
    for of in (cut, recording, supervision):
        if draw(st.integers(0, 5)) == 0:
            key = draw(st.sampled_from(("start", "duration", "sampling_rate", "num_samples", "channel")))
            if key in of:
                of[key] = draw(st.sampled_from(NUMBERS))
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        cut = mutate(cut, draw)
    return cut


def run(cases: int, seed: int) -> None:
    """Try so many lines.

    Raises:
        AssertionError: the two ways differ, or the quick one took hardly any line, so that nothing was compared.
    """
    taken = 0

    @seeded(seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        nonlocal taken
        taken += check(data)

    one()
    assert taken > cases / 20, f"{taken} of {cases} lines were taken"
