"""The teacher's own greedy WER on a demo corpus: `python -m demo.evaluate_teacher CORPUS`."""

import argparse
from pathlib import Path

import jiwer
import soundfile
import torch

from demo.synthesize import TRANSCRIPTS
from demo.teacher_model import load_teacher, transcribe

TEACHER = Path(__file__).parent / "teacher"


def evaluate(teacher: Path, corpus: Path, split: str) -> float:
    """WER of the teacher's greedy texts over one split of a corpus folder.

    Raises ValueError where the folder has no transcripts or none of that split.
    """
    transcripts = corpus / TRANSCRIPTS
    if not transcripts.is_file():
        raise ValueError(f"{transcripts} is missing; make the corpus with python -m demo.synthesize {corpus}")
    rows = [line.split("\t") for line in transcripts.read_text().splitlines()[1:]]
    texts = {id_: text for id_, row_split, _, text in rows if row_split == split}
    if not texts:
        raise ValueError(f"{transcripts} has no utterance of split {split!r}")
    model = load_teacher(teacher)
    heard: list[str] = []
    ids = list(texts)
    for start in range(0, len(ids), 16):
        paths = [corpus / "audio" / split / f"{id_}.flac" for id_ in ids[start : start + 16]]
        heard += transcribe(model, [soundfile.read(path, dtype="float32")[0] for path in paths])
    return float(jiwer.wer(list(texts.values()), heard))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m demo.evaluate_teacher`."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.evaluate_teacher", description="WER of the teacher."
    )
    parser.add_argument("corpus", type=Path, help="a folder written by python -m demo.synthesize")
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="folder of the checkpoint")
    parser.add_argument("--split", default="test")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        error_rate = evaluate(options.teacher, options.corpus, options.split)
    except ValueError as error:
        parser.error(str(error))
    print(f"greedy WER on {options.split}: {error_rate:.4f}")


if __name__ == "__main__":
    main()
