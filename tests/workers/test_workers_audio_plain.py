"""The short way for plain files gives what the general way gives."""

from pathlib import Path

import pytest
from workers_fakes import cut_of, write_sound

from mvqkd.workers import audio
from mvqkd.workers.audio import AudioLoader

load = AudioLoader(16_000)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize(("start", "duration"), [(0.0, None), (0.1, 0.2), (0.25, 0.2499), (0.0, 0.4993)])
def test_plain_files_are_read_as_the_general_way_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, start: float, duration: float | None
) -> None:
    cut = cut_of(write_sound(tmp_path / f"a.{suffix}", 0.5), start=start, duration=duration)
    plain = load(cut)
    monkeypatch.setattr(audio, "_read_plain", lambda *_: None)
    assert plain.numel() > 0 and plain.equal(load(cut))


def test_plain_files_are_read_without_lhotse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a change of Lhotse's, or of ours, would send every file the slow way without a word."""
    monkeypatch.setattr(audio, "_load", None)
    assert load(cut_of(write_sound(tmp_path / "a.flac", 0.5))).numel() == 8000
