"""How a line of a corpus is turned away: one cut alone, or the whole file when it is of another kind."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from mvqkd.workers.corpus.files import CorpusError
from mvqkd.workers.cuts import Refused

Item = TypeVar("Item")

_LOOK_AT = 100


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that holds no utterance at all, as a torn file or a file of another kind has them."""

    where: str
    problem: str


class FieldError(ValueError):
    """A field of a cut cannot be used; the message names the field, what stands there and what is wanted."""

    def __init__(self, field: str, value: object, wanted: str) -> None:
        super().__init__(f"{field} is {shown(value)}, not {wanted}; correct it or remove the cut")


def without_bad_lines(
    items: Iterator[Item | BadLine], *, wanted: str, remedy: str
) -> Iterator[Item | Refused]:
    """The items, with a refusal in the place of each bad line.

    Args:
        items: of one file, in order.
        wanted: what the lines of such a file are, for the message.
        remedy: what to do about a file of another kind.

    Raises:
        CorpusError: more than half of the first 100 lines are bad, so this is no such file.
    """
    num_lines, num_bad, first = 0, 0, None

    def check() -> None:
        if first is not None and 2 * num_bad > num_lines:
            more = f" ({num_bad} of the first {num_lines} lines are no {wanted})" if num_lines > 1 else ""
            raise CorpusError(f"{first.where}: {first.problem}{more}; {remedy}")

    for item in items:
        if num_lines < _LOOK_AT:
            num_lines += 1
            if isinstance(item, BadLine):
                num_bad, first = num_bad + 1, first or item
            if num_lines == _LOOK_AT:
                check()
        if isinstance(item, BadLine):
            yield Refused(
                cut_id=item.where, reason=f"{item.where}: {item.problem}; correct the line or remove it"
            )
        else:
            yield item
    if num_lines < _LOOK_AT:
        check()


def shown(value: Any) -> str:
    """A value of a manifest as a message shows it: JSON, cut short."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."
