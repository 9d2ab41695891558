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
from s3_server import S3Server
from workers_fakes import cut_of, sound, write_sound

from mvqkd.storage.errors import StorageError
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError

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
