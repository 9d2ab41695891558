"""The short way for plain files gives what the general way gives."""

from pathlib import Path

import pytest
from lhotse import MonoCut
from lhotse.audio import AudioSource
from workers_fakes import cut_of, write_sound

from mvqkd.workers import audio, fetches
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.files import part_of

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


def inside_a_larger_file(cut: MonoCut, folder: Path, data: bytes) -> MonoCut:
    """The cut with its audio as Shar has it, or a store."""
    whole = folder / "whole.tar"
    whole.write_bytes(b"before" + data + b"behind")
    cut.recording.sources = [AudioSource("url", [0], part_of(f"file://{whole}", 6, 6 + len(data)))]
    return cut


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_audio_that_is_fetched_is_read_as_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = write_sound(tmp_path / f"a.{suffix}", 0.5)
    wanted = load(cut_of(path, start=0.1, duration=0.2))
    cut = inside_a_larger_file(cut_of(path, start=0.1, duration=0.2), tmp_path, path.read_bytes())
    monkeypatch.setattr(audio, "_load", None)
    assert load(cut).equal(wanted)


def test_audio_that_is_fetched_and_not_plain_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sound(tmp_path / "a.ogg", 0.5)
    wanted = load(cut_of(path))
    cut = inside_a_larger_file(cut_of(path), tmp_path, path.read_bytes())
    fetched = []
    fetch = fetches.fetch

    def counted(url: str, options: dict[str, object]) -> bytes:
        fetched.append(url)
        return fetch(url, options)

    monkeypatch.setattr(fetches, "fetch", counted)
    assert load(cut).equal(wanted)
    assert len(fetched) == 1
