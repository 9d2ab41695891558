"""What students made of the test part, as the decode stage left it, and one student against another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.show.progress import say
from mvqkd.storage.errors import ObjectMissingError

if TYPE_CHECKING:
    from mvqkd.workers.recognize.bootstrap import Difference
    from mvqkd.workers.recognize.score import NotRecognized, Recognized

_OF = ("digest", "wer")
"""Figures of a score that say whether a comparison with it is still true."""


def read_errors(
    run: Run, name: str, score: Mapping[str, Any]
) -> tuple[list["Recognized"], list["NotRecognized"]]:
    """The utterances of a student's `errors.jsonl`.

    Args:
        score: of the student's report, which they must be of.

    Raises:
        StageError: the file is missing, damaged, or of another decoding than the score.
    """
    from mvqkd.workers.recognize.score import NotRecognized, Recognized, read_results

    out = run.student(name)
    where = out.full_url("errors.jsonl")
    try:
        results = read_results(out.read_bytes("errors.jsonl").decode("utf-8"), where=where)
    except ObjectMissingError as error:
        raise StageError(f"{where}: missing; `mvqkd decode` writes it") from error
    except ValueError as error:
        raise StageError(f"{error}") from error
    recognized = [result for result in results if isinstance(result, Recognized)]
    errors, words = sum(r.errors for r in recognized), sum(r.words for r in recognized)
    wer = errors / max(1, words)
    if (len(recognized), words) != (score["utterances"], score["words"]) or abs(wer - score["wer"]) > 1e-9:
        raise StageError(
            f"{where}: {errors} errors in {words} words are not the {score['wer']:.2%} of {score['words']} words in "
            f"the report; `mvqkd decode --student {name}` makes both anew"
        )
    return recognized, [result for result in results if isinstance(result, NotRecognized)]


def against_others(run: Run, name: str, mine: Sequence["Recognized"]) -> dict[str, dict[str, Any]]:
    """A student against every other one of the run that was decoded on the same utterances, by its name.

    Values are the fields of `bootstrap.Difference`, and `of`: the training and the error rate that it is about.
    """
    found = {}
    for other in run.config.student_names():
        score = run.reports.read("decode", other) if other != name else {}
        if not score:
            continue
        try:
            theirs, _ = read_errors(run, other, score)
        except StageError as error:
            say(f"{name} is not compared with {other}: {error}")
            continue
        difference = compare_two(mine, theirs)
        if difference is not None:
            found[other] = {**asdict(difference), "of": {key: score[key] for key in _OF}}
    return found


def compare_two(mine: Sequence["Recognized"], theirs: Sequence["Recognized"]) -> "Difference | None":
    """One system against another; None unless both recognized the same utterances, with the same references."""
    from mvqkd.workers.recognize.bootstrap import Bootstrap

    by_id = {result.cut_id: result for result in theirs}
    if not mine or {(r.cut_id, r.reference) for r in mine} != {(r.cut_id, r.reference) for r in theirs}:
        return None
    errors = {"mine": [r.errors for r in mine], "theirs": [by_id[r.cut_id].errors for r in mine]}
    bootstrap = Bootstrap(errors, [r.words for r in mine], [r.speaker for r in mine])
    return bootstrap.compare("mine", "theirs")
