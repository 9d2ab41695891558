"""The benchmarks run on a machine that has torch, transformers, numpy and scipy alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import whisper_window

REPOSITORY = Path(__file__).resolve().parents[2]
# Importing a module whose entry is None raises ModuleNotFoundError, as if it were not installed.
BARE = (
    "import sys\n"
    "for name in ('multi_quantization', 'soundfile', 'lhotse', 'ray', 'botocore', 's3fs', 'torchaudio'):\n"
    "    sys.modules[name] = None\n"
)


def on_a_bare_machine(code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", BARE + code], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_waveforms_from_arrays(tmp_path):
    waves = {name: np.random.default_rng(0).standard_normal(size) for name, size in (("a", 500), ("b", 900))}
    for name, wave in waves.items():
        np.save(tmp_path / f"{name}.npy", wave)
    longest, shortest = whisper_window.read_waveforms(tmp_path, 5)
    assert longest.dtype == torch.float32 and (longest.shape, shortest.shape) == ((900,), (500,))
    np.testing.assert_array_equal(longest.numpy(), waves["b"].astype(np.float32))
    shown = on_a_bare_machine(
        "from pathlib import Path\nfrom benchmarks import whisper_window as b\n"
        f"print([len(x) for x in b.read_waveforms(Path({str(tmp_path)!r}), 5)])\n"
        f"Path({str(tmp_path / 'c.wav')!r}).touch()\n"
        "try:\n"
        f"    b.read_waveforms(Path({str(tmp_path)!r}), 5)\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    assert shown.startswith("[900, 500]\n")
    assert "c.wav takes soundfile to read: pip install soundfile, or give .npy files" in shown


def test_what_is_no_audio(tmp_path):
    with pytest.raises(ValueError, match=r"no .flac, .wav or .npy files in"):
        whisper_window.read_waveforms(tmp_path, 5)
    np.save(tmp_path / "a.npy", np.zeros((2, 500), dtype=np.float32))
    with pytest.raises(ValueError, match=r"a.npy holds float32 \(2, 500\): give floats of shape"):
        whisper_window.read_waveforms(tmp_path, 5)
