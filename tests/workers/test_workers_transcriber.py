"""Texts of files: windows end where it is quiet, channels, rates, formats, and bad files cost the others nothing."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from mvqkd.models.students.base import Student, StudentLoss
from mvqkd.models.students.units import CharUnits
from mvqkd.workers.recognize.settings import DecodeConfig
from mvqkd.workers.recognize.transcriber import NotTranscribed, Transcriber, Transcript

UNITS = CharUnits("0123456789:")
RATE_HZ = 16_000


class Meter(Student):
    """Says how many hundredths of a second it hears, and how loud they are in hundredths."""

    channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 1)])
        self.batches: list[int] = []

    def features(self, waveform_T: Tensor) -> Tensor:
        frames = waveform_T[: len(waveform_T) // 160 * 160].view(-1, 160)
        return frames.square().mean(dim=1, keepdim=True).sqrt()

    def greedy(self, features_BTF: Tensor, lengths_B: Tensor) -> list[list[int]]:
        self.batches.append(len(lengths_B))
        return [
            UNITS.encode(f"{int(length)}:{round(100 * float(one[:length].mean()))}")
            for one, length in zip(features_BTF, lengths_B, strict=True)
        ]

    def beam(self, features_BTF: Tensor, lengths_B: Tensor, *, beam: int, modified: bool = False):
        return [UNITS.encode(f"{beam}:{int(modified)}") for _ in lengths_B]

    def loss(self, *_: Tensor) -> StudentLoss:
        raise AssertionError


def write(path: Path, seconds: float, *, loud: float = 0.5, rate_hz: int = RATE_HZ, quiet: tuple = ()) -> str:
    """A square wave that is silent for 0.3 s around some times."""
    audio = loud * np.sign(np.sin(np.arange(round(seconds * rate_hz)) * 0.1))
    for at in quiet:
        audio[round((at - 0.15) * rate_hz) : round((at + 0.15) * rate_hz)] = 0.0
    soundfile.write(path, audio.astype(np.float32), rate_hz)
    return str(path)


def heard(result: Transcript | NotTranscribed) -> list[list[int]]:
    assert isinstance(result, Transcript), result
    return [[int(number) for number in window.split(":")] for window in result.text.split()]


def transcribe(names: list[str], student: Student | None = None, **options):
    return list(Transcriber(student or Meter(), UNITS, **options)(names))


def test_files_come_in_order_and_short_ones_are_heard_whole(tmp_path: Path) -> None:
    lengths = [0.5, 2.0, 1.0, 0.25]
    names = [write(tmp_path / f"{number}.wav", length) for number, length in enumerate(lengths)]
    results = transcribe(names)
    assert [result.file for result in results] == names
    assert [heard(result) for result in results] == [[[round(100 * length), 50]] for length in lengths]
    assert [result.to_dict()["duration_s"] for result in results] == lengths


def test_long_files_are_cut_where_it_is_quiet(tmp_path: Path) -> None:
    name = write(tmp_path / "long.flac", 33.0, quiet=(3.0, 8.5, 9.4, 17.25, 24.5))
    (result,) = transcribe([name], window_s=10.0)
    ends = np.cumsum([frames for frames, _ in heard(result)]) / 100
    # The quiet at 3 s is too early. The first of two quiet places is as good as the second; the last window has no end.
    assert ends == pytest.approx([8.5, 17.25, 24.5, 33.0], abs=0.06)
    (whole,) = transcribe([name], window_s=40.0)
    assert [frames for frames, _ in heard(whole)] == [3300]


def test_without_any_quiet_nothing_is_lost_and_no_window_is_too_long(tmp_path: Path) -> None:
    for seconds in (10.05, 20.5, 47.33):
        (result,) = transcribe([write(tmp_path / "long.wav", seconds)], window_s=10.0)
        frames = [window for window, _ in heard(result)]
        assert sum(frames) == pytest.approx(100 * seconds, abs=len(frames))
        assert max(frames) <= 1000 and min(frames) >= 100


def test_a_long_file_takes_no_more_memory_than_a_few_batches(tmp_path: Path) -> None:
    student = Meter()
    transcriber = Transcriber(student, UNITS, window_s=5.0, batch_seconds=10.0)
    seen: list[float] = []
    names = [write(tmp_path / "long.wav", 120.0), write(tmp_path / "short.wav", 1.0)]
    results = list(transcriber(names, note=seen.append))
    assert sum(frames for frames, _ in heard(results[0])) == 12_000 and heard(results[1]) == [[100, 50]]
    assert max(student.batches) <= 3 and sum(seen) == pytest.approx(121)


def test_a_file_is_told_before_the_next_ones_are_read(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{number}.wav", 4.0) for number in range(12)]
    asked = []

    def one_by_one():
        for name in names:
            asked.append(name)
            yield name

    results = Transcriber(Meter(), UNITS, batch_seconds=4.0)(one_by_one())
    next(results)
    assert len(asked) <= 6


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate_hz: int) -> None:
    (result,) = transcribe([write(tmp_path / "a.wav", 12.0, rate_hz=rate_hz)], window_s=10.0)
    assert sum(frames for frames, _ in heard(result)) == pytest.approx(1200, abs=2)


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "aiff", "flac", "opus"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    audio = (0.3 * np.sin(np.arange(32_000) * 0.1)).astype(np.float32)
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, audio, RATE_HZ, **options)
    ((frames, loud),) = heard(transcribe([str(path)])[0])
    assert frames == pytest.approx(200, abs=12) and loud == pytest.approx(21, abs=2)


def test_channels_are_averaged_or_chosen(tmp_path: Path) -> None:
    square = np.sign(np.sin(np.arange(RATE_HZ) * 0.1))
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([0.8 * square, 0.2 * square], axis=1), RATE_HZ)
    assert [heard(transcribe([str(path)], channel=c)[0])[0][1] for c in (None, 0, 1)] == [50, 80, 20]
    (refused,) = transcribe([str(path)], channel=2)
    assert "has no channel 2, only [0, 1]" in refused.problem


def test_bad_files_are_named_and_cost_the_others_nothing(tmp_path: Path) -> None:
    good = [write(tmp_path / "good.wav", 1.0), write(tmp_path / "too.wav", 2.0)]
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.wav").touch()
    short = write(tmp_path / "short.wav", 0.01)
    nothing = write(tmp_path / "nothing.wav", 0.0)
    half = tmp_path / "half.flac"
    write(half, 30.0)
    half.write_bytes(half.read_bytes()[:-200])
    broken = tmp_path / "nan.wav"
    soundfile.write(broken, np.full(RATE_HZ, np.nan), RATE_HZ, subtype="FLOAT")
    bad = {
        str(tmp_path / "none.wav"): "No such file", str(tmp_path): "Is a directory", short: "too few for one frame",
        str(tmp_path / "text.wav"): "no audio of a format", str(tmp_path / "empty.wav"): "the file is empty",
        nothing: "lasts 0 s", str(half): "the audio is damaged", str(broken): "NaN or infinity",
        "a\0b": "cannot be read",
    }  # fmt: skip
    results = transcribe([good[0], *bad, good[1]], window_s=10.0)
    assert [heard(result) for result in (results[0], results[-1])] == [[[100, 50]], [[200, 50]]]
    for result, (name, words) in zip(results[1:-1], bad.items(), strict=True):
        assert isinstance(result, NotTranscribed) and result.file == name
        assert words in result.problem and "manifest" not in result.problem
        assert result.to_dict() == {"file": name, "error": result.problem}


def test_the_search_is_the_one_asked_for(tmp_path: Path) -> None:
    name = write(tmp_path / "a.wav", 1.0)
    for search, modified in (("beam", "0"), ("modified_beam", "1")):
        (result,) = transcribe([name], decode=DecodeConfig(search=search, beam=7))
        assert result.text == f"7:{modified}"


def test_windows_that_are_too_short_are_refused() -> None:
    for wrong in (1.0, float("nan")):
        with pytest.raises(ValueError, match="cut too many words; take 5 s or more"):
            Transcriber(Meter(), UNITS, window_s=wrong)
    assert torch.is_grad_enabled()
