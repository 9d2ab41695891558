"""Waveforms of cuts, and what is said of those that cannot be had."""

import errno
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut
from lhotse.audio import AudioSource
from lhotse.augmentation import get_or_create_resampler
from s3_server import S3Server
from workers_fakes import cut_of, sound, write_sound

from mvqkd.storage.errors import StorageError
from mvqkd.workers import audio
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError, cut_from_json, cut_to_json

load = AudioLoader(16_000)


def test_waveform_is_the_files(tmp_path: Path) -> None:
    cut = cut_of(write_sound(tmp_path / "a.flac", 0.5))
    waveform_T = load(cut)
    assert waveform_T.dtype == torch.float32
    np.testing.assert_allclose(waveform_T.numpy(), sound("a", 0.5), atol=2**-15)


def test_part_of_a_recording(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", 0.5)
    waveform_T = load(cut_of(path, start=0.1, duration=0.2))
    np.testing.assert_allclose(waveform_T.numpy(), sound("a", 0.5)[1600:4800], atol=2**-15)


@pytest.mark.parametrize(("rate", "expected"), [(8000, 8000), (44_100, 8000), (48_000, 8000)])
def test_resampled(tmp_path: Path, rate: int, expected: int) -> None:
    path = tmp_path / "tone.wav"
    time_s = np.arange(rate // 2) / rate
    soundfile.write(path, np.sin(2 * np.pi * 440 * time_s), rate)
    waveform_T = load(cut_of(path))
    assert waveform_T.shape == (expected,)
    wanted = np.sin(2 * np.pi * 440 * np.arange(expected) / 16_000)
    np.testing.assert_allclose(waveform_T.numpy()[500:-500], wanted[500:-500], atol=0.02)


def damaged(make: Callable[[Path], None]) -> Callable[[Path], MonoCut]:
    """A cut whose manifest was written before `make` changed its file."""

    def build(path: Path) -> MonoCut:
        cut = cut_of(write_sound(path, 0.5))
        make(path)
        return cut

    return build


def wrong_channel(path: Path) -> MonoCut:
    cut = cut_of(write_sound(path, 0.5))
    cut.channel = 3
    return cut


def with_nan(path: Path) -> None:
    data = sound("a", 0.5)
    data[100] = np.nan
    soundfile.write(path, data, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("a.wav", damaged(lambda path: path.unlink()), "no such audio file; check the manifest's paths"),
        (
            "a.flac",
            damaged(lambda p: p.write_bytes(p.read_bytes()[:3000])),
            "cannot be read as its manifest says",
        ),
        ("a.wav", damaged(lambda p: p.write_bytes(b"nothing")), "cannot be read as its manifest says"),
        ("a.wav", damaged(lambda p: p.write_bytes(b"")), "cannot be read as its manifest says"),
        (
            "a.wav",
            damaged(lambda p: write_sound(p, 0.4) and None),
            "lasts 0.400 s, but 0.500 s by its manifest",
        ),
        (
            "a.wav",
            damaged(lambda p: write_sound(p, 0.7) and None),
            "lasts 0.700 s, but 0.500 s by its manifest",
        ),
        ("a.wav", damaged(with_nan), "holds NaN or infinity; write the file again"),
        ("a.wav", wrong_channel, "cannot be read as its manifest says"),
    ],
    ids=["missing", "truncated", "foreign", "empty", "shorter", "longer", "nan", "channel"],
)
def test_bad_audio(tmp_path: Path, name: str, build: Callable[[Path], MonoCut], message: str) -> None:
    cut = build(tmp_path / name)
    with pytest.raises(UtteranceError) as caught:
        load(cut)
    assert str(caught.value).startswith(f"a: {tmp_path / name}: ")
    assert message in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (again.cut_id, again.problem) == ("a", caught.value.problem)


def test_replaced_file_of_a_perturbed_cut(tmp_path: Path) -> None:
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.55)).perturb_speed(1.1).resample(8000)
    assert AudioLoader(16_000)(cut).numel() == pytest.approx(8000, abs=2)
    write_sound(tmp_path / "a.wav", 0.6)
    with pytest.raises(UtteranceError, match=r"a_sp1.1: .*lasts 0.600 s, but 0.550 s by its manifest"):
        load(cut)


def test_cut_without_samples(tmp_path: Path) -> None:
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5), duration=1e-6)
    with pytest.raises(UtteranceError, match=r"a: .*a.wav: the audio (has no samples|cannot be read)"):
        load(cut)


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_trouble_of_the_disk_is_not_the_utterances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5))

    def fail(*_: object) -> None:
        raise OSError(code, "trouble", "a.wav")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match="trouble") as caught:
        load(cut)
    assert caught.value.errno == code


def test_disk_that_fails_in_the_middle_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder says that the file is bad; reading it through tells that the disk is."""
    path = write_sound(tmp_path / "a.flac", 0.5)
    cut = cut_of(path)
    path.write_bytes(path.read_bytes()[:3000])

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if size != 1:
                raise OSError(errno.EIO, "trouble")
            return b"f"

    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    with pytest.raises(OSError, match="trouble"):
        load(cut)


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no", "a.wav")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        UtteranceError, match=r"a: .*a.wav: the audio file may not be read; check its permissions"
    ):
        load(cut)


def test_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5))
    (tmp_path / "a.wav").unlink()
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(UtteranceError, match=r"a: .*a.wav: no such audio file"):
        load(cut)


@pytest.mark.integration
def test_audio_in_s3(tmp_path: Path, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"endpoint_url": s3_environment.endpoint_url}
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5))
    url = f"s3://{s3_environment.bucket}/audio/a.wav"
    fsspec.filesystem("s3", **options).put(str(tmp_path / "a.wav"), url)
    cut.recording.sources = [AudioSource("url", [0], url)]
    np.testing.assert_allclose(AudioLoader(16_000, s3=options)(cut).numpy(), sound("a", 0.5), atol=2**-15)
    cut.recording.sources = [AudioSource("url", [0], url + ".gone")]
    with pytest.raises(UtteranceError, match=r"a: s3://.*a.wav.gone: no such audio file"):
        AudioLoader(16_000, s3=options)(cut)
    # Trouble with the store is not the utterance's fault: it must not be left out for that.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="refused the credentials"):
        AudioLoader(16_000, s3=options)(cut)


def test_relative_paths_lie_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_of(write_sound(tmp_path / "audio/a.wav", 0.5))
    expected = load(cut)
    cut.recording.sources = [AudioSource("file", [0], "audio/a.wav")]
    for root in (str(tmp_path), f"{tmp_path}/"):
        assert AudioLoader(16_000, root=root)(cut).equal(expected)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert AudioLoader(16_000, root=f"~/{tmp_path.name}")(cut).equal(expected)
    with pytest.raises(
        UtteranceError, match=r"a: audio/a.wav: a path relative to the corpus; set corpus.root"
    ):
        load(cut)
    # What is not under the root says itself where it is.
    cut.recording.sources = [AudioSource("file", [0], str(tmp_path / "audio/a.wav"))]
    assert AudioLoader(16_000, root="/elsewhere")(cut).equal(expected)


def test_impulse_responses_lie_under_the_root_too(tmp_path: Path) -> None:
    (cut, response) = (cut_of(write_sound(tmp_path / f"{name}.wav", 0.5)) for name in "ab")
    cut = cut.reverb_rir(response.recording)
    expected = load(cut)
    line = cut_to_json(cut, root=str(tmp_path))
    assert str(tmp_path) not in line
    assert AudioLoader(16_000, root=str(tmp_path))(cut_from_json(line)).equal(expected)
    (tmp_path / "b.wav").unlink()
    with pytest.raises(UtteranceError, match=r"a_rvb: .*/b.wav: no such audio file"):
        AudioLoader(16_000, root=str(tmp_path))(cut_from_json(line))


@pytest.mark.parametrize(
    "error",
    [ImportError("no library"), AttributeError("x"), KeyError("x"), TypeError("x"), ZeroDivisionError("x")],
)
def test_whatever_a_transform_raises_is_the_utterances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5)).perturb_volume(2.0)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("lhotse.augmentation.Volume.__call__", fail)
    with pytest.raises(
        UtteranceError, match=r"a_vp2.0: .*a.wav: the audio cannot be read .*write either again"
    ):
        load(cut)


def test_memory_is_not_the_utterances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5)).perturb_volume(2.0)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lhotse.augmentation.Volume.__call__", fail)
    with pytest.raises(MemoryError):
        load(cut)


def test_codecs_run_at_the_rate_of_the_recording(tmp_path: Path) -> None:
    """Lhotse gives a transform the rate that is asked for, so that teacher and student would hear two codecs."""
    path = tmp_path / "a.wav"
    soundfile.write(path, sound("a", 0.5, rate=24_000), 24_000)
    cut = cut_of(path).compress("opus", compression_level=0.99)
    own = torch.from_numpy(cut.load_audio())
    for rate in (8_000, 16_000):
        expected = get_or_create_resampler(24_000, rate)(own)[0]
        waveform = AudioLoader(rate)(cut)
        assert waveform.numel() == rate // 2
        np.testing.assert_allclose(waveform.numpy(), expected[: rate // 2].numpy(), atol=1e-6)


def test_sphere_files_need_no_sph2pipe(tmp_path: Path) -> None:
    for name in ("a.sph", "a.SPH"):
        soundfile.write(tmp_path / name, sound("a", 0.5), 16_000, format="NIST", subtype="ULAW")
        waveform_T = load(cut_of(tmp_path / name, start=0.1, duration=0.2))
        np.testing.assert_allclose(waveform_T.numpy(), sound("a", 0.5)[1600:4800], atol=0.02)


def test_channels_that_nobody_can_tell_apart(tmp_path: Path) -> None:
    """Lhotse takes the first channel of a stereo file for the only one that the manifest names."""
    cut = cut_of(write_sound(tmp_path / "a.wav", 0.5, channels=2))
    cut.recording.sources = [AudioSource("file", [1], str(tmp_path / "a.wav"))]
    cut.channel, cut.recording.channel_ids = 1, [1]
    with pytest.raises(UtteranceError, match=r"a: .*a.wav: has 2 channels, but its manifest names \[1\]"):
        load(cut)
    cut.recording.sources = [AudioSource("file", [0, 1], str(tmp_path / "a.wav"))]
    cut.recording.channel_ids = [0, 1]
    np.testing.assert_allclose(load(cut).numpy(), sound("a", 0.5), atol=2**-14)
    mono = cut_of(write_sound(tmp_path / "b.wav", 0.5))
    mono.recording.sources = [AudioSource("file", [0, 1], str(tmp_path / "b.wav"))]
    mono.channel, mono.recording.channel_ids = 1, [0, 1]
    with pytest.raises(UtteranceError, match=r"b: .*b.wav: the audio cannot be read as its manifest says"):
        load(mono)


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
