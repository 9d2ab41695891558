"""Folders of runs as the stages leave them, with students that misunderstand at a chosen rate; nothing is trained.

`python -m tests.compare_runs FOLDER` makes some to look at, in `FOLDER/*.yaml`.
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import yaml

from mvqkd.models.students.config import StudentConfig
from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.storage.artifacts import save_artifact, write_json
from mvqkd.storage.contract import TableContract
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.recognize.score import Recognized, score
from mvqkd.workers.section import identity_of

SUBJECTS = [
    "the old captain",
    "a young engineer",
    "my neighbour",
    "the night train",
    "her brother",
    "the radio",
    "every student",
]
VERBS = [
    "never mentions",
    "has repaired",
    "will remember",
    "is waiting for",
    "could not hear",
    "wrote about",
    "carries",
]
OBJECTS = [
    "the broken engine",
    "a letter from home",
    "the second harbour",
    "nine wooden boxes",
    "the morning news",
]
ENDS = [
    "before the rain",
    "in the quiet street",
    "at half past seven",
    "with great care",
    "again and again",
    "for sixty days",
]
HEARD_AS = {
    "the": "a", "a": "the", "old": "cold", "night": "light", "train": "rain", "rain": "train", "hear": "here",
    "harbour": "harper", "letter": "latter", "boxes": "foxes", "seven": "several", "street": "straight",
    "wrote": "rode", "nine": "mine", "sixty": "sixteen", "quiet": "quite", "half": "have", "carries": "carry",
    "again": "against",
    "captain": "caption", "remember": "november", "waiting": "wading", "broken": "broke", "radio": "ratio",
}  # fmt: skip

NONE = {"distill": {"loss_scale": 0.0}}
"""What makes a student one without codes."""

Said = tuple[str, str | None, str]
"""Cut id, speaker, words."""

_FIGURES = {"mean_s": 0.55, "p90_s": 0.8, "longest_s": 0.81}
DELAY: dict[str, Any] = {
    "latency_s": 0.81,
    "chunk_s": 0.1,
    "utterances": 100,
    "aligned": 100,
    "waits": {**_FIGURES, "units": 900, "median_s": 0.49, "p90_s": 0.7},
    "words": {**_FIGURES, "units": 300, "median_s": 0.62},
}
"""Of a streaming student, as `mvqkd decode` reports it."""


def sentences(*, speakers: int = 20, each: int = 15, seed: int = 0) -> list[Said]:
    rng = np.random.default_rng(seed)
    said: list[Said] = []
    for number in range(speakers * each):
        words = " ".join(str(rng.choice(part)) for part in (SUBJECTS, VERBS, OBJECTS, ENDS))
        said.append((f"test-{number:04d}", f"speaker-{number % speakers + 1:02d}", words))
    return said


def misheard(said: Iterable[Said], rate: float, *, seed: int) -> list[Recognized]:
    """Substitutions, deletions and insertions; some speakers are harder than others for every system."""
    results = []
    for number, (cut_id, speaker, words) in enumerate(said):
        # What is hard is the same for all systems; how hard, is up to the rate.
        hard = np.random.default_rng([7, number])
        rng = np.random.default_rng([seed, number])
        voice = 0.4 + 1.6 * ((hash_of(speaker) % 97) / 97) ** 2
        heard: list[str] = []
        for word in words.split():
            draw = 0.6 * hard.random() + 0.4 * rng.random()
            if draw < math.sqrt(rate) * 0.62 * voice:
                kind = rng.random()
                if kind < 0.62:
                    heard.append(HEARD_AS.get(word, word[:-1] or "uh"))
                elif kind > 0.8:
                    heard += [word, "uh" if rng.random() < 0.5 else "and"]
            else:
                heard.append(word)
        results.append(recognized(cut_id, speaker, words, " ".join(heard)))
    return results


def hash_of(speaker: str | None) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(speaker or ""))


def recognized(cut_id: str, speaker: str | None, reference: str, hypothesis: str) -> Recognized:
    counts = jiwer.process_words(reference, hypothesis)
    return Recognized(
        cut_id=cut_id,
        duration_s=0.4 * len(reference.split()),
        speaker=speaker,
        reference=reference,
        hypothesis=hypothesis,
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        words=len(reference.split()),
    )


def curve(
    steps: int, *, final: float, with_codes: bool, wer: float | None, every: int = 50
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(int(final * 1000))
    points: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        done = step / steps
        loss = final + 160 * math.exp(-9 * done) + rng.normal(0, 0.03 * final)
        code = 3.1 + 2.4 * math.exp(-5 * done) + rng.normal(0, 0.015) if with_codes else None
        points.append(
            {
                "epoch": int(done * 30) + 1,
                "step": step,
                "total_steps": steps,
                "transducer_loss": loss,
                "codebook_loss": code,
                "head_losses": {} if code is None else {"codebook": code},
                "lr": 1e-3 * min(1, step / 200),
                "utterances_per_s": 61.0 + rng.normal(0, 1.5) - (2.5 if with_codes else 0),
                "seconds": step * 0.55,
                "left_out": 0,
                **(
                    {}
                    if wer is None or step % (4 * every)
                    else {"valid_wer": wer + 0.9 * math.exp(-6 * done)}
                ),
            }
        )
    return points


class FakeRun:
    """A run whose folders a test fills."""

    def __init__(self, folder: Path, name: str, students: dict[str, Any], **sections: Any) -> None:
        tree = {
            "corpus": {"root": "corpus"},
            "teacher": {"path": "teacher"},
            "students": students,
            "cluster": {"address": "none"},
            "storage": {"root": str(folder / name)},
            **sections,
        }
        self.file = folder / f"{name}.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(tree, sort_keys=False))
        self.run = Run(load_config(self.file))

    def extracted(self, *, hours: float = 0.55, codebooks: int = 8) -> None:
        frames = int(hours * 3600 * 50)
        indexes = frames * codebooks
        table = {
            "url": self.run.table.url,
            "contract": asdict(self.contract(codebooks)),
            "rows": int(hours * 1300),
            "hours": hours,
            "total_bytes": int(indexes * 1.02),
            "bytes_per_index": 1.02,
            "bytes_per_hour": indexes * 1.02 / hours,
            "float32_bytes_per_hour": frames * 512 * 4 / hours,
            "float16_bytes_per_hour": frames * 512 * 2 / hours,
            "mean_rrl": 0.13,
        }
        self.run.reports.write("extract", {"table": table, "table_url": self.run.table.url})

    def contract(self, codebooks: int = 8) -> TableContract:
        return TableContract(
            teacher_fingerprint="f" * 64,
            teacher_name="a-teacher",
            layer=6,
            quantizer_id="q" * 64,
            num_codebooks=codebooks,
            codebook_size=256,
            frame_rate_hz=50.0,
            frame_offset_s=0.0125,
            sample_rate_hz=16_000,
        )

    def begun(self, student: str, points: Sequence[dict[str, Any]]) -> None:
        write_json(
            self.run.student(student), "curve.json", {"digest": f"d-{student}", "points": list(points)}
        )

    def trained(self, student: str, points: Sequence[dict[str, Any]], *, codebooks: int = 8) -> None:
        sizes, distill = self.run.config.student_settings(student)
        assert isinstance(sizes, StudentConfig) and isinstance(distill, DistillConfig)
        record = {
            "student": sizes.to_dict(),
            "distill": identity_of(distill),
            "units": {"kind": "char", "data": " abc"},
            "contract": asdict(self.contract(codebooks)),
            "sample_rate_hz": 16_000,
            "digest": f"d-{student}",
            "steps": points[-1]["step"],
            "left_out": {},
        }
        save_artifact(self.run.student(student), "student", {"w": np.zeros(3, np.float32)}, record)
        report = {
            "name": student,
            "digest": f"d-{student}",
            "pair": "p",
            "url": self.run.student(student).url,
            "parameters": 4_821_336,
            "steps": points[-1]["step"],
            "epochs": distill.epochs,
            "loss_scale": distill.loss_scale,
            "left_out": 0,
            "curve": list(points),
        }
        self.run.reports.write("distill", report, student)

    def decoded(self, student: str, results: Sequence[Recognized]) -> None:
        out = self.run.student(student)
        lines = "".join(json.dumps(result.to_dict(), ensure_ascii=False) + "\n" for result in results)
        out.replace("errors.jsonl", lines.encode())
        content = {**asdict(score(results)), "errors": out.full_url("errors.jsonl"), "digest": f"d-{student}"}
        self.run.reports.write("decode", content, student)


def two_students(folder: Path, name: str = "two") -> FakeRun:
    """Decoded, the second one with fewer errors."""
    said = sentences(speakers=12, each=5)
    fake = FakeRun(folder, name, {"baseline": NONE, "mvqkd": {}})
    for student, rate in (("baseline", 0.25), ("mvqkd", 0.08)):
        fake.trained(student, curve(200, final=3.0, with_codes=student == "mvqkd", wer=None))
        fake.decoded(student, misheard(said, rate, seed=3))
    return fake


def some_runs(folder: Path, said: Sequence[Said]) -> list[FakeRun]:
    """A run with three students that are done, and one with a student that is done and two that are not."""
    first = FakeRun(
        folder, "read-speech", {"baseline": NONE, "mvq8": {}, "mvq4": {"distill": {"codebooks": 4}}}
    )
    first.extracted()
    rates = {"baseline": 0.2, "mvq8": 0.11, "mvq4": 0.12}
    for number, (student, rate) in enumerate(rates.items()):
        points = curve(3000, final=30 * rate, with_codes=student != "baseline", wer=rate)
        first.trained(student, points)
        first.decoded(student, misheard(said, rate, seed=number))
    second = FakeRun(
        folder,
        "streaming",
        {"mvq16": {"student": {"encoder_dim": 192}}, "half": {}, "later": {}},
        quantizer={"num_codebooks": 16},
    )
    second.extracted(codebooks=16)
    second.trained("mvq16", curve(3000, final=4.1, with_codes=True, wer=0.13), codebooks=16)
    second.decoded("mvq16", misheard(said, 0.13, seed=9))
    second.begun("half", curve(3000, final=4.4, with_codes=True, wer=None)[:20])
    return [first, second]


if __name__ == "__main__":
    print(*(each.file for each in some_runs(Path(sys.argv[1]), sentences())))
