"""Word errors counted by hand, and what cannot be recognized is listed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lhotse import MonoCut
from workers_fakes import make_cuts

from mvqkd.models.students.base import Student
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import CharUnits
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.recognize.recognizer import Recognizer
from mvqkd.workers.recognize.score import NotRecognized, Recognized, score
from mvqkd.workers.recognize.settings import DecodeConfig

STUDENT = StudentConfig(encoder_dim=16, num_layers=1, num_heads=2, ffn_dim=32, conv_kernel=5)
UNITS = CharUnits(" abcdefghijklmnopqrstuvwxyz")


class Parrot(ConformerTransducer):
    """Says what it is told, in the order in which it is asked."""

    def say(self, texts: Sequence[str]) -> "Parrot":
        self.texts = list(texts)
        return self

    def greedy(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor, **_: object) -> list[list[int]]:
        return [UNITS.encode(self.texts.pop(0)) for _ in lengths_B]


def recognize(cuts: Sequence[MonoCut], says: Sequence[str]) -> list[Recognized | NotRecognized]:
    torch.manual_seed(0)
    parrot = Parrot(STUDENT, len(UNITS)).say(says)
    return list(Recognizer(parrot, UNITS, loader=AudioLoader(16_000), batch_seconds=1.2)(cuts))


def test_counts(tmp_path: Path) -> None:
    texts = ["the cat sat down", "one two", "a  b", ""]
    cuts = make_cuts(tmp_path, [0.7, 0.6, 0.5, 0.4], texts=texts)
    # One substitution and one deletion; one insertion; none; two insertions.
    results = recognize(cuts, ["the dog sat", "one two three", " a b ", "um er"])
    assert all(isinstance(result, Recognized) for result in results)
    counts = [(r.substitutions, r.deletions, r.insertions, r.words) for r in results]  # type: ignore[union-attr]
    assert counts == [(1, 1, 0, 4), (0, 0, 1, 2), (0, 0, 0, 2), (0, 0, 2, 0)]
    totals = score(results)
    assert totals.wer == pytest.approx(5 / 8) and (totals.words, totals.utterances, totals.left_out) == (
        8,
        4,
        0,
    )
    # Characters: 3 for cat/dog, 5 for " down", 6 for " three", 5 for "um er", of 16 + 7 + 3 + 0.
    assert totals.cer == pytest.approx(19 / 26)
    first = results[0].to_dict()  # type: ignore[union-attr]
    assert (first["cut_id"], first["speaker"], first["hypothesis"]) == ("u000", "bob", "the dog sat")


def test_what_cannot_be_recognized_is_listed(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4, 0.3, 0.05], texts=["a", "b", None, "d"])
    (tmp_path / "u001.wav").unlink()
    results = recognize(cuts, ["a"])
    errors = {result.cut_id: result.problem for result in results if isinstance(result, NotRecognized)}
    assert sorted(errors) == ["u001", "u002", "u003"]
    assert "no such audio file" in errors["u001"]
    assert "has no transcript" in errors["u002"] and "remove it from the test part" in errors["u002"]
    assert "800 samples are too few for one frame of the student" in errors["u003"]
    totals = score(results)
    assert (totals.wer, totals.utterances, totals.left_out) == (0.0, 1, 3)
    assert (totals.hours, totals.left_out_hours) == pytest.approx((0.5 / 3600, 0.75 / 3600))


def test_nothing_recognized(tmp_path: Path) -> None:
    (cut,) = make_cuts(tmp_path, [0.5])
    (tmp_path / "u000.wav").unlink()
    with pytest.raises(ValueError, match="no utterance of the test part could be recognized; see the list"):
        score(recognize([cut], []))


def test_only_empty_references(tmp_path: Path) -> None:
    totals = score(recognize(make_cuts(tmp_path, [0.5], texts=[""]), ["word"]))
    assert (totals.words, totals.wer) == (0, 1.0)


def test_batches_do_not_change_what_is_recognized(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.9, 0.5, 0.7, 0.3], texts=["a"])
    torch.manual_seed(2)
    student = ConformerTransducer(STUDENT, len(UNITS))
    with torch.no_grad():
        student.output.bias[0] -= 0.2
        student.output.weight *= 3

    def texts(batch_seconds: float) -> dict[str, str]:
        recognizer = Recognizer(student, UNITS, loader=AudioLoader(16_000), batch_seconds=batch_seconds)
        return {r.cut_id: r.hypothesis for r in recognizer(cuts) if isinstance(r, Recognized)}

    together, alone = texts(100.0), texts(0.1)
    assert together == alone and len(set(together.values())) > 1


def test_search_is_as_the_section_decode_says(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.9, 0.5, 0.7], texts=["a"])
    torch.manual_seed(2)
    student = ConformerTransducer(STUDENT, len(UNITS)).eval()
    with torch.no_grad():
        student.output.weight *= 3

    def texts(**keys: object) -> list[str]:
        recognizer = Recognizer(
            student, UNITS, loader=AudioLoader(16_000), decode=DecodeConfig.model_validate(keys)
        )
        return [r.hypothesis for r in recognizer(cuts) if isinstance(r, Recognized)]

    def found(**options: object) -> list[str]:
        loaded = [
            student.features(AudioLoader(16_000)(cut)) for cut in sorted(cuts, key=lambda c: -c.duration)
        ]
        one = (student.beam(f[None], torch.tensor([len(f)]), **options)[0] for f in loaded)  # type: ignore[arg-type]
        return [" ".join(UNITS.decode(units).split()) for units in one]

    assert texts(search="beam", beam=3) == found(beam=3)
    assert texts(search="modified_beam", beam=2) == found(beam=2, modified=True)
    assert len({tuple(texts()), tuple(texts(search="beam")), tuple(texts(search="modified_beam"))}) == 3
    with pytest.raises(ValueError, match=r"has no `beam`.*decode\.search greedy"):
        Student.beam(student, torch.zeros(1, 9, 80), torch.tensor([9]), beam=2)
    for wrong in ({"beam": 0}, {"search": "best"}, {"beam": 4.5}):
        with pytest.raises(ValueError, match=r"beam|search"):
            DecodeConfig.model_validate(wrong)
