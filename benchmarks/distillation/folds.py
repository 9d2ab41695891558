"""Four folds of speakers over a corpus folder: each speaker is recognized once, by students that never heard them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lhotse import MonoCut

from mvqkd.workers.corpus.config import CorpusConfig
from mvqkd.workers.corpus.corpus import Corpus
from mvqkd.workers.cuts import Refused, speaker_of

NUM_FOLDS = 4


def write_folds(corpus: str, folder: Path) -> None:
    """Write `fold-N/train.jsonl` and `fold-N/test.jsonl` for every fold, of all splits of a corpus folder together.

    Speakers go to folds in the order of their names, one after the other.
    """
    cuts = sorted(_cuts(corpus), key=lambda cut: cut.id)
    speakers = sorted({str(speaker_of(cut)) for cut in cuts})
    fold_of = {speaker: number % NUM_FOLDS for number, speaker in enumerate(speakers)}
    for fold in range(NUM_FOLDS):
        place = folder / f"fold-{fold}"
        place.mkdir(parents=True, exist_ok=True)
        with (place / "train.jsonl").open("w") as train, (place / "test.jsonl").open("w") as test:
            for cut in cuts:
                file = test if fold_of[str(speaker_of(cut))] == fold else train
                file.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")


def _cuts(root: str) -> Iterator[MonoCut]:
    parts: tuple[Literal["train", "test"], ...] = ("train", "test")
    for part in parts:
        config = CorpusConfig(format="folder", root=root, max_duration_s=20.0)
        for cut in Corpus(config, sample_rate_hz=16_000).cuts(part):
            if isinstance(cut, Refused):
                raise ValueError(f"{cut.cut_id}: {cut.reason}")
            yield cut
