"""Synthesizes the demo's corpus: `python -m demo.synthesize FOLDER`.

The folder holds `transcripts.tsv` (id, split, speaker, text), `audio/<split>/<id>.flac` (16 kHz, mono,
16 bit) and `manifest.json`. On one machine the same parameters give the same bytes; between kinds of
processors the last bit of a sample may differ, as it does for any floating-point filter.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from demo.sentences import sentences
from demo.voices import (
    SAMPLE_RATE_HZ,
    TEST_SPEAKERS,
    TRAIN_SPEAKERS,
    Espeak,
    Speaker,
    make_room_and_noise,
    to_16khz,
)

# Raised whenever a change of this package changes the audio or the texts, so that old folders are not kept.
GENERATOR_VERSION = 2
MANIFEST = "manifest.json"
TRANSCRIPTS = "transcripts.tsv"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What is synthesized.

    minutes_train, minutes_test: audio per split. minutes_untranscribed: audio of the training part beyond that, whose
    texts are left out. snr_db_low, snr_db_high: limits of the signal-to-noise
    ratio, drawn per utterance. Raises ValueError for values nothing can be synthesized from.
    """

    minutes_train: float = 12.0
    minutes_test: float = 4.0
    minutes_untranscribed: float = 24.0
    snr_db_low: float = 8.0
    snr_db_high: float = 25.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("minutes_train", "minutes_test"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give more than 0 minutes")
        if self.minutes_untranscribed < 0:
            raise ValueError(f"minutes_untranscribed is {self.minutes_untranscribed}; give 0 minutes or more")
        if self.snr_db_low > self.snr_db_high:
            raise ValueError(
                f"snr_db_low {self.snr_db_low} is above snr_db_high {self.snr_db_high}; swap them"
            )


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One utterance: its line of `transcripts.tsv` and its audio, float32 (samples,) at 16 kHz."""

    id: str
    split: str
    speaker: str
    text: str
    audio: np.ndarray


def speak_split(
    engine: Espeak, split: str, speakers: tuple[Speaker, ...], minutes: float, config: CorpusConfig
) -> Iterator[Utterance]:
    """Utterances of one split, the speakers in turn, until their audio reaches `minutes`."""
    texts = sentences(f"{config.seed}-{split}", test=split == "test")
    jitter = random.Random(f"{config.seed}-{split}-jitter")
    total_s = 0.0
    for index, text in enumerate(texts):
        if total_s >= minutes * 60:
            return
        speaker = speakers[index % len(speakers)]
        samples = engine.speak(
            text, speaker, pitch_shift=jitter.randint(-6, 6), rate_factor=jitter.uniform(0.9, 1.1)
        )
        audio = make_room_and_noise(
            to_16khz(samples, engine.sample_rate_hz),
            np.random.default_rng([config.seed, split == "test", index]),
            snr_db=(config.snr_db_low, config.snr_db_high),
        )
        total_s += len(audio) / SAMPLE_RATE_HZ
        yield Utterance(
            id=f"{speaker.name}-{index:05d}", split=split, speaker=speaker.name, text=text, audio=audio
        )


def corpus_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of transcripts and audio, hexadecimal."""
    digest = hashlib.sha256()
    for path in [folder / TRANSCRIPTS, *sorted(folder.glob("audio/*/*.flac"))]:
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_complete(folder: Path, config: CorpusConfig) -> bool:
    """Whether `folder` already holds exactly the corpus of `config`, with no byte changed."""
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file() or not (folder / TRANSCRIPTS).is_file():
        return False
    manifest = json.loads(manifest_path.read_text())
    return (
        manifest.get("generator_version") == GENERATOR_VERSION
        and manifest.get("parameters") == asdict(config)
        and manifest.get("digest") == corpus_digest(folder)
    )


class _Reporter:
    """A progress bar on a terminal, a plain line every 15 s elsewhere; counts seconds of audio."""

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self._done_s = 0.0
        self._console = Console(stderr=True)
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("synthesizing speech"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("s of audio"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("speech", total=round(total_s))

    def __enter__(self) -> "_Reporter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, audio_s: float) -> None:
        self._done_s += audio_s
        self._bar.update(self._task, completed=round(self._done_s))
        if not self._console.is_terminal and time.monotonic() - self._last_line > 15:
            self._last_line = time.monotonic()
            print(f"synthesized {self._done_s:.0f} of {self._total_s:.0f} s of audio", file=sys.stderr)


def synthesize(folder: Path, config: CorpusConfig) -> dict[str, object]:
    """Writes the corpus of `config` to `folder` and returns its manifest; a complete one is kept as it is.

    The corpus is built in `<folder>.partial` and renamed when it is whole. An earlier corpus of this program
    in the folder is replaced. Raises ValueError where the folder holds something else.
    """
    if is_complete(folder, config):
        return dict(json.loads((folder / MANIFEST).read_text()))
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are no corpus of this program; name another folder")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)

    lines = ["id\tsplit\tspeaker\ttext"]
    seconds = {"train": 0.0, "test": 0.0}
    engine = Espeak()
    splits = (
        ("train", TRAIN_SPEAKERS, config.minutes_train + config.minutes_untranscribed),
        ("test", TEST_SPEAKERS, config.minutes_test),
    )
    with _Reporter(60 * sum(minutes for _, _, minutes in splits)) as reporter:
        for split, speakers, minutes in splits:
            (partial / "audio" / split).mkdir(parents=True)
            for utterance in speak_split(engine, split, speakers, minutes, config):
                path = partial / "audio" / split / f"{utterance.id}.flac"
                soundfile.write(path, utterance.audio, SAMPLE_RATE_HZ, subtype="PCM_16")
                transcribed = split == "test" or seconds[split] < 60 * config.minutes_train
                text = utterance.text if transcribed else ""
                lines.append(f"{utterance.id}\t{split}\t{utterance.speaker}\t{text}")
                seconds[split] += len(utterance.audio) / SAMPLE_RATE_HZ
                reporter.add(len(utterance.audio) / SAMPLE_RATE_HZ)
    (partial / TRANSCRIPTS).write_text("\n".join(lines) + "\n")
    manifest: dict[str, object] = {
        "generator_version": GENERATOR_VERSION,
        "parameters": asdict(config),
        "digest": corpus_digest(partial),
        "utterances": len(lines) - 1,
        "seconds": {split: round(value, 3) for split, value in seconds.items()},
        "speakers": {
            "train": [asdict(speaker) for speaker in TRAIN_SPEAKERS],
            "test": [asdict(speaker) for speaker in TEST_SPEAKERS],
        },
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return manifest


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m demo.synthesize`."""
    defaults = CorpusConfig()
    parser = argparse.ArgumentParser(
        prog="python -m demo.synthesize", description="Synthesize the demo corpus."
    )
    parser.add_argument("folder", type=Path, help="where the corpus goes")
    parser.add_argument("--minutes-train", type=float, default=defaults.minutes_train)
    parser.add_argument("--minutes-test", type=float, default=defaults.minutes_test)
    parser.add_argument("--minutes-untranscribed", type=float, default=defaults.minutes_untranscribed)
    parser.add_argument(
        "--snr-db-low", type=float, default=defaults.snr_db_low, help="dB, noisiest utterance"
    )
    parser.add_argument(
        "--snr-db-high", type=float, default=defaults.snr_db_high, help="dB, cleanest utterance"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    values = vars(parser.parse_args(arguments))
    folder: Path = values.pop("folder")
    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        manifest = synthesize(folder, CorpusConfig(**values))
    except ValueError as error:
        parser.error(str(error))
    elapsed_s = time.monotonic() - started
    print(
        f"{folder}: {manifest['utterances']} utterances, {manifest['seconds']} s of audio, {elapsed_s:.1f} s"
    )


if __name__ == "__main__":
    main()
