"""The short form of the fuzz of a plan's lines."""

from tests.fuzz.fuzz_plan_lines import run


def test_the_quick_way_writes_what_the_long_way_writes() -> None:
    run(cases=400, seed=3)
