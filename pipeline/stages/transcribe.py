"""`mvqkd transcribe`: the texts of audio files, on standard output as soon as they are known."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.show.progress import bar, say
from mvqkd.pipeline.stages.trained import Trained


@dataclass(frozen=True, kw_only=True)
class TranscribeSettings:
    """How files are heard; see `workers.recognize.transcriber`."""

    window_s: float
    channel: int | None
    batch_seconds: float
    device: str


def transcribe(
    trained: Trained, files: Sequence[str], settings: TranscribeSettings, *, as_json: bool
) -> dict[str, Any]:
    """Print a line for each file: its name, a tab and its text, or JSON. Standard error names what cannot be read.

    Returns:
        How many files there were, how many failed, and how long all took.

    Raises:
        StageError: there is no such student.
        ValueError: a setting is wrong.
    """
    from mvqkd.workers.recognize.transcriber import NotTranscribed, Transcriber
    from mvqkd.workers.teacher import choose_device

    student, units = trained.load()
    device = choose_device(settings.device)
    if device.type == "cuda" and choose_device("auto").type != "cuda":
        raise StageError("--device cuda: this machine has no CUDA device; take cpu")
    began = time.monotonic()
    transcriber = Transcriber(
        student.to(device),
        units,
        decode=trained.decode,
        window_s=settings.window_s,
        channel=settings.channel,
        batch_seconds=settings.batch_seconds,
    )
    heard_s, failed = 0.0, 0
    out = sys.stdout  # which a bar on a terminal replaces
    with bar("transcribe", total=float("inf"), unit="s of audio") as show:

        def note(seconds: float) -> None:
            nonlocal heard_s
            heard_s += seconds
            show.update(heard_s, times_real_time=heard_s / max(1e-9, time.monotonic() - began))

        for result in transcriber(files, note=note):
            if isinstance(result, NotTranscribed):
                failed += 1
                say(f"{result.file}: {result.problem}")
                if not as_json:
                    continue
            line = json.dumps(result.to_dict(), ensure_ascii=False) if as_json else _line(result)
            print(line, file=out, flush=True)
    seconds = time.monotonic() - began
    if failed:
        say(f"{failed} of {len(files)} files have no text")
    return {"files": len(files), "failed": failed, "audio_s": heard_s, "seconds": seconds}


def _line(result: Any) -> str:
    # A name may hold what ends a line or a field.
    name = result.file.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    return f"{name}\t{result.text}"
