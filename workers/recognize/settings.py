"""The section `decode` of a run file: how trained students are searched."""

from typing import Annotated, Literal

from pydantic import Field

from mvqkd.workers.section import Section


class DecodeConfig(Section):
    """Of recognition alone: no key here changes a student.

    Streaming students hear some `delay_utterances` of a test part again, in chunks of `delay_chunk_s` seconds.
    """

    search: Literal["greedy", "beam", "modified_beam"] = "greedy"
    beam: Annotated[int, Field(ge=1, le=64)] = 4
    delay_utterances: Annotated[int, Field(ge=0)] = 100
    delay_chunk_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
