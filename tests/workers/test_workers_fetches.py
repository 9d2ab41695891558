"""Audio in a store is fetched ahead, once, and kept no longer than it is of use."""

import pickle
import threading
from pathlib import Path

import pytest
from lhotse import MonoCut
from lhotse.audio import AudioSource
from workers_fakes import cut_of, write_sound

from mvqkd.workers import fetches
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import decoded_batches
from mvqkd.workers.fetches import AT_ONCE, Fetches


class Store:
    """Counts what it is asked for; `sizes` are of its files."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes, self.asked = sizes, []
        self._lock = threading.Lock()

    def __call__(self, url: str, options: object) -> bytes:
        with self._lock:
            self.asked.append(url)
        if url not in self.sizes:
            raise FileNotFoundError(url)
        return url.encode()[:1] * self.sizes[url]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store(dict.fromkeys("abcdef", 100))
    monkeypatch.setattr(fetches, "fetch", made)
    return made


def test_what_was_begun_is_fetched_once_and_not_kept(store: Store) -> None:
    ahead = Fetches({})
    ahead.begin("a")
    ahead.begin("a")
    assert ahead.get("a", again=False) == b"a" * 100
    assert store.asked == ["a"]
    assert ahead.get("a", again=False) == b"a" * 100
    assert store.asked == ["a", "a"]


def test_a_recording_whose_parts_are_wanted_is_fetched_once(store: Store) -> None:
    ahead = Fetches({})
    assert {ahead.get("a", again=True) for _ in range(20)} == {b"a" * 100}
    assert store.asked == ["a"]


def test_what_is_kept_is_bounded(store: Store) -> None:
    ahead = Fetches({}, kept_bytes=250)
    for name in "abab":
        ahead.get(name, again=True)
    ahead.get("c", again=True)
    assert store.asked == ["a", "b", "c"]
    ahead.get("b", again=True)
    assert store.asked == ["a", "b", "c"]
    ahead.get("a", again=True)
    assert store.asked == ["a", "b", "c", "a"]
    assert ahead._num_bytes <= 250


def test_a_file_that_is_larger_than_the_bound_is_fetched_once(store: Store) -> None:
    store.sizes["a"] = 1000
    ahead = Fetches({}, kept_bytes=250)
    assert [len(ahead.get("a", again=True)) for _ in range(3)] == [1000] * 3
    assert store.asked == ["a"]
    ahead.get("b", again=True)
    assert ahead._num_bytes == 100


def test_a_file_that_could_not_be_had_is_asked_for_again(store: Store) -> None:
    ahead = Fetches({})
    ahead.begin("new")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="new"):
            ahead.get("new", again=True)
    store.sizes["new"] = 5
    assert ahead.get("new", again=True) == b"nnnnn"
    assert store.asked == ["new"] * 3


def test_many_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One decoding thread does not mean one GET at a time."""
    all_here = threading.Barrier(AT_ONCE)

    def slow(url: str, options: object) -> bytes:
        all_here.wait(timeout=60)
        return b""

    monkeypatch.setattr(fetches, "fetch", slow)
    ahead = Fetches({})
    items = [str(number) for number in range(AT_ONCE)]
    loaded = decoded_batches(
        [items], lambda url: ahead.get(url, again=False), threads=1, begin=lambda url: ahead.begin(url)
    )
    assert list(loaded) == [[b""] * AT_ONCE]


def test_another_process_has_its_own(store: Store) -> None:
    ahead = Fetches({"region": "here"})
    ahead.begin("a")
    there = pickle.loads(pickle.dumps(ahead))  # noqa: S301 (our own)
    assert there.get("a", again=False) == b"a" * 100
    assert there._options == {"region": "here"}


@pytest.mark.parametrize("as_root", [False, True])
def test_audio_of_cuts_is_fetched_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: bool
) -> None:
    """By its url, and by a path that is relative to a corpus in a store; parts of one recording by one GET."""
    asked: list[str] = []
    real = fetches.fetch

    def counted(url: str, options: dict[str, str]) -> bytes:
        asked.append(url)
        return real(url, options)

    monkeypatch.setattr(fetches, "fetch", counted)
    path = write_sound(tmp_path / "a.flac", 1.0)
    local = AudioLoader(16_000)
    loader = AudioLoader(16_000, root=f"file://{tmp_path}" if as_root else None)

    def remote(cut: MonoCut) -> MonoCut:
        cut.recording.sources = [
            AudioSource("file", [0], "a.flac") if as_root else AudioSource("url", [0], f"file://{path}")
        ]
        return cut

    spans = [(0.0, 0.25), (0.25, 0.25), (0.5, 0.5)]
    wanted = [local(cut_of(path, start=start, duration=duration)) for start, duration in spans]
    cuts = [remote(cut_of(path, start=start, duration=duration)) for start, duration in spans]
    for cut in cuts:
        loader.begin(cut)
    assert all(loader(cut).equal(waveform_T) for cut, waveform_T in zip(cuts, wanted, strict=True))
    assert asked == [f"file://{path}"]


def test_a_missing_file_that_was_begun_costs_its_utterance_alone(tmp_path: Path) -> None:
    cut = cut_of(write_sound(tmp_path / "a.flac", 0.5))
    cut.recording.sources = [AudioSource("url", [0], f"file://{tmp_path}/gone.flac")]
    loader = AudioLoader(16_000)
    loader.begin(cut)
    with pytest.raises(UtteranceError, match=r"gone.flac: no such audio file"):
        loader(cut)
