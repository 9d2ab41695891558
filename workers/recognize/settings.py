"""The section `decode` of a run file: how trained students are searched."""

from typing import Annotated, Literal

from pydantic import Field

from mvqkd.workers.section import Section


class DecodeConfig(Section):
    """Of recognition alone: no key here changes a student."""

    search: Literal["greedy", "beam", "modified_beam"] = "greedy"
    beam: Annotated[int, Field(ge=1, le=64)] = 4
