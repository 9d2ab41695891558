"""Embeddings of a corpus by a Whisper encoder, kept as .npy files.

The utterances of a split are put end to end and cut into the 30 s that Whisper takes, so that no frame is
padding and none is of silence that was put there.
"""

import csv
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quantizer.files import written_aside

_SAMPLE_RATE_HZ = 16_000
_WINDOW_SAMPLES = 30 * _SAMPLE_RATE_HZ
_PROGRESS_EVERY_WINDOWS = 5


def corpus_embeddings(corpus: Path, teacher: Path, out: Path, device: torch.device) -> tuple[Path, Path]:
    """The .npy files (frames, dim) of the splits `train` and `test`, computed where they are not there yet.

    Raises:
        ValueError: the corpus or the teacher is not what it should be.
        ModuleNotFoundError: soundfile or transformers is needed and not installed.
    """
    config = teacher / "config.json"
    if not config.is_file():
        raise ValueError(f"no config.json in {teacher}: give --teacher a Whisper checkpoint of transformers")
    paths = []
    encoder = None
    for split in ("train", "test"):
        files = audio_files(corpus, split)
        digest = hashlib.sha256(config.read_bytes())
        for file in [*files, *sorted(teacher.glob("*.safetensors"))]:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        path = out / f"embeddings-{split}-{digest.hexdigest()[:12]}.npy"
        if not path.is_file():
            encoder = encoder or WhisperEncoder(teacher, device)
            embedded = np.concatenate(list(encoder.embed_all(windows(map(read_waveform, files)), split)))
            with written_aside(path) as target:
                np.save(target, embedded)
        paths.append(path)
    return paths[0], paths[1]


def audio_files(corpus: Path, split: str) -> list[Path]:
    """The split's audio in the order of transcripts.tsv.

    Raises:
        ValueError: the table or a file is missing, or the split is empty.
    """
    table = corpus / "transcripts.tsv"
    if not table.is_file():
        raise ValueError(
            f"no {table}: --corpus takes a folder with transcripts.tsv and audio/<split>/<id>.flac"
        )
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not {"id", "split"} <= rows[0].keys():
        raise ValueError(f"{table} needs the columns id and split, separated by tabs")
    files = [corpus / "audio" / split / f"{row['id']}.flac" for row in rows if row["split"] == split]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise ValueError(
            f"no {missing[0]}" if missing else f"{table} has no utterance of the split {split!r}"
        )
    return files


def windows(waveforms: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The waveforms (num_samples,) end to end, 30 s at a time; what does not fill 30 s is dropped."""
    kept: list[np.ndarray] = []
    for waveform in waveforms:
        kept.append(waveform)
        while sum(map(len, kept)) >= _WINDOW_SAMPLES:
            joined = np.concatenate(kept)
            yield joined[:_WINDOW_SAMPLES]
            kept = [joined[_WINDOW_SAMPLES:]]


def read_waveform(file: Path) -> np.ndarray:
    """float32 (num_samples,) of 16 kHz audio with one channel.

    Raises:
        ValueError: it has another rate or more channels.
        ModuleNotFoundError: soundfile is not installed.
    """
    try:
        import soundfile  # here, as it is not on every machine with a GPU
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--corpus takes soundfile to read: pip install soundfile, or give --train-frames and --test-frames"
        ) from error
    waveform, rate_hz = soundfile.read(file, dtype="float32")
    if rate_hz != _SAMPLE_RATE_HZ or waveform.ndim != 1:
        raise ValueError(f"{file} has {rate_hz} Hz and shape {waveform.shape}; give 16 kHz with one channel")
    return waveform


class WhisperEncoder:
    """The encoder of a Whisper checkpoint on windows of exactly 30 s."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        # Only here: it takes seconds to import, and who gives frames need not have it.
        from transformers import WhisperFeatureExtractor, WhisperModel

        model: Any = WhisperModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
        self._encoder = model.encoder.to(device).eval()
        self._features = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        self._device = device

    @torch.inference_mode()
    def embed(self, window: np.ndarray) -> np.ndarray:
        """The last hidden state (frames, dim), float32, of one window (num_samples,)."""
        features = self._features(window, sampling_rate=_SAMPLE_RATE_HZ, return_tensors="pt")
        return self._encoder(features.input_features.to(self._device)).last_hidden_state[0].cpu().numpy()

    def embed_all(self, all_windows: Iterator[np.ndarray], split: str) -> Iterator[np.ndarray]:
        """`embed` of each, with a line on standard error now and then.

        Raises:
            ValueError: there is no window.
        """
        done = 0
        for window in all_windows:
            yield self.embed(window)
            done += 1
            if done % _PROGRESS_EVERY_WINDOWS == 0:
                print(f"embedding {split}: {done * 30} s of audio done", file=sys.stderr, flush=True)
        if done == 0:
            raise ValueError(f"the split {split!r} is shorter than 30 s; give a longer corpus")
