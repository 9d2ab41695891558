"""What was said and what was heard, word by word."""

from typing import Literal, NamedTuple

import jiwer


class Aligned(NamedTuple):
    """A place in an alignment: what was said, None for an insertion; what was heard, None for a deletion."""

    kind: Literal["equal", "substitution", "deletion", "insertion"]
    said: str | None
    heard: str | None


def align(reference: str, hypothesis: str) -> list[Aligned]:
    """The words of both, side by side, with as few errors as can be: as many as are counted."""
    out = jiwer.process_words(reference, hypothesis)
    words, heard = out.references[0], out.hypotheses[0]
    aligned: list[Aligned] = []
    for chunk in out.alignments[0]:
        said = words[chunk.ref_start_idx : chunk.ref_end_idx]
        got = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            aligned += [Aligned("deletion", word, None) for word in said]
        elif chunk.type == "insert":
            aligned += [Aligned("insertion", None, word) for word in got]
        else:
            kind: Literal["equal", "substitution"] = "equal" if chunk.type == "equal" else "substitution"
            aligned += [Aligned(kind, one, other) for one, other in zip(said, got, strict=True)]
    return aligned
