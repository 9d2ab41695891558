"""The short form of the fuzz of corpora."""

from tests.fuzz.fuzz_corpus import run


def test_corpora() -> None:
    run(cases=150, seed=12)
