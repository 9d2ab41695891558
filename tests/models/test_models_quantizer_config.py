"""The settings of a fit: checked where they are declared, and a section of a run file as they are."""

import subprocess
import sys

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from mvqkd.models.quantizer import FitConfig, FitSettings


class RunFile(BaseModel):
    """As the pipeline nests sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    fit: FitConfig


def test_a_section_of_a_run_file():
    fit = RunFile.model_validate({"fit": {"num_codebooks": 4, "method": "paper", "lr": 0.01}}).fit
    assert fit == FitConfig(num_codebooks=4, method="paper", lr=0.01)
    assert isinstance(fit, FitSettings)


@pytest.mark.parametrize(
    ("section", "place", "message"),
    [
        ({}, "num_codebooks", "required"),
        ({"num_codebooks": 4, "rounds": 5}, "rounds", "Unexpected keyword"),
        ({"num_codebooks": 4, "method": "fast"}, "method", "'lsq' or 'paper'"),
        ({"num_codebooks": 0}, "", "num_codebooks=0 must be at least 1"),
        ({"num_codebooks": 4, "codebook_size": 32}, "", "codebook_size=32; use 4, 16, 64 or 256"),
        ({"num_codebooks": 4, "valid_every": 0}, "", "valid_every=0 must be at least 1"),
        ({"num_codebooks": 4, "lr": float("inf")}, "lr", "finite"),
        ({"num_codebooks": 4, "method": "paper", "ordered": True}, "", "ordered codebooks need"),
    ],
)
def test_what_a_section_refuses(section, place, message):
    with pytest.raises(ValidationError, match=message) as caught:
        RunFile.model_validate({"fit": section})
    (error,) = caught.value.errors()
    assert error["loc"] == (("fit", place) if place else ("fit",))


def test_some_twenty_measurements_unless_told():
    lsq, paper = FitConfig(num_codebooks=2), FitConfig(num_codebooks=2, method="paper")
    assert (lsq.steps_between_measurements, paper.steps_between_measurements) == (6, 1000)
    assert (lsq.steps_between_states, paper.steps_between_states) == (6, 1000)
    few = FitConfig(num_codebooks=2, anneal_rounds=3, valid_every=4)
    assert (few.steps_between_measurements, few.steps_between_states) == (4, 1)


@pytest.mark.parametrize("name", ["lr", "tolerance", "max_seconds", "predictability"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        FitConfig(num_codebooks=2, **{name: value})


def test_settings_are_read_without_torch():
    code = "import sys; import mvqkd.models.quantizer.fit_config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
