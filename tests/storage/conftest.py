"""A contract and realistic rows for the tests of the storage room."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mvqkd.storage.contract import TableContract
from mvqkd.storage.location import open_location
from mvqkd.storage.rows import EmbeddingsRow, IndexRow
from mvqkd.storage.table import IndexTable

WORDS = ["YES", "NO", "ENTER", "SEVEN", "ERASE", "RUBOUT", "M", "TWO", "HELP", "START", "OCTOBER", "ZERO"]

EMBEDDING_DIM = 24


def make_row(index: int, *, num_frames: int, num_codebooks: int, rng: np.random.Generator) -> IndexRow:
    """A row as extraction writes it, with a cut of some 600 bytes of JSON and random codes."""
    speaker = f"f{'abcdefgh'[index // 13 % 8]}kls"
    name = f"an{rng.integers(1000)}-{speaker}-b{index}"
    duration = round(num_frames / 50 + float(rng.integers(0, 300)) / 16000, 6)
    num_samples = round(duration * 16000)
    text = " ".join(rng.choice(WORDS, 5))
    supervision = {"id": name, "recording_id": name, "start": 0.0, "duration": duration, "channel": 0,
                   "text": text, "speaker": speaker}  # fmt: skip
    source = {"type": "file", "channels": [0], "source": f"audio/train/{name}.flac"}
    recording = {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": num_samples,
                 "duration": duration, "channel_ids": [0]}  # fmt: skip
    cut = {"id": name, "start": 0, "duration": duration, "channel": 0, "supervisions": [supervision],
           "recording": recording, "type": "MonoCut"}  # fmt: skip
    return IndexRow(
        cut_id=name,
        recording_id=name,
        channel=0,
        start=0.0,
        duration=duration,
        speed=1.0,
        num_samples=num_samples,
        num_frames=num_frames,
        rrl=float(rng.uniform(0.05, 0.3)),
        speaker=speaker,
        text=text,
        codes=rng.integers(0, 256, (num_frames, num_codebooks), dtype=np.uint8),
        cut=json.dumps(cut, separators=(",", ":")),
    )


@pytest.fixture
def contract() -> TableContract:
    return TableContract(
        teacher_fingerprint="a" * 64,
        teacher_name="whisper-base-encoder",
        layer=6,
        quantizer_id="b" * 64,
        num_codebooks=8,
        codebook_size=256,
        frame_rate_hz=50.0,
        frame_offset_s=0.0125,
        sample_rate_hz=16000,
    )


@pytest.fixture
def make_rows() -> Callable[..., list[IndexRow]]:
    """`make_rows(count, num_frames=134, num_codebooks=8, seed=0)`: the same arguments give the same rows."""

    def make(count: int, *, num_frames: int = 134, num_codebooks: int = 8, seed: int = 0) -> list[IndexRow]:
        rng = np.random.default_rng(seed)
        return [
            make_row(index, num_frames=num_frames, num_codebooks=num_codebooks, rng=rng)
            for index in range(count)
        ]

    return make


@pytest.fixture
def table(tmp_path: Path, contract: TableContract) -> IndexTable:
    """An empty local table."""
    return IndexTable.create(open_location(str(tmp_path / "table")), contract)


@pytest.fixture
def of_embeddings(contract: TableContract) -> TableContract:
    return TableContract(
        teacher_fingerprint=contract.teacher_fingerprint,
        teacher_name=contract.teacher_name,
        layer=contract.layer,
        frame_rate_hz=contract.frame_rate_hz,
        frame_offset_s=contract.frame_offset_s,
        sample_rate_hz=contract.sample_rate_hz,
        payload="embeddings",
        dim=EMBEDDING_DIM,
    )


@pytest.fixture
def embedded(make_rows: Callable[..., list[IndexRow]]) -> Callable[..., list[EmbeddingsRow]]:
    """Rows as of `make_rows`, with random embeddings in the place of codes."""

    def make(count: int, *, num_frames: int = 30, seed: int = 0) -> list[EmbeddingsRow]:
        rng = np.random.default_rng(seed)
        rows = []
        for row in make_rows(count, num_frames=num_frames, seed=seed):
            values = {name: value for name, value in row.items() if name not in ("rrl", "codes")}
            x_TD = (rng.standard_normal((num_frames, EMBEDDING_DIM)) * 5).astype(np.float16)
            rows.append(EmbeddingsRow(**values, embeddings=x_TD))  # type: ignore[typeddict-item]
        return rows

    return make
