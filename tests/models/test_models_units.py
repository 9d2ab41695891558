"""Characters and SentencePiece pieces, there and back."""

import pytest

from mvqkd.models.students.units import CharUnits, SentencePieceUnits, load_units, train_units

TEXTS = ["the cat sat on the mat", "the dog ate the cat", "a dog and a cat", "été naïf"] * 5


def test_characters_there_and_back() -> None:
    units = train_units("char", iter(TEXTS), vocab_size=0)
    assert units.data == "".join(sorted(set("".join(TEXTS))))
    assert len(units) == len(set("".join(TEXTS))) + 1
    for text in TEXTS:
        encoded = units.encode(text)
        assert min(encoded) >= 1 and max(encoded) < len(units) and len(encoded) == len(text)
        assert units.decode(encoded) == text
    assert units.encode("") == [] and units.decode([]) == ""


def test_order_of_the_texts_does_not_matter() -> None:
    assert (
        train_units("char", TEXTS, vocab_size=0).data == train_units("char", TEXTS[::-1], vocab_size=0).data
    )


def test_unknown_characters_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"transcript 'cab x' has characters outside the alphabet: \[' ', 'x'\]"
    ):
        CharUnits("abc").encode("cab x")


def test_pieces_there_and_back() -> None:
    units = train_units("sentencepiece", iter(TEXTS), vocab_size=20)
    assert len(units) == 21
    for text in TEXTS:
        encoded = units.encode(text)
        assert min(encoded) >= 1 and max(encoded) < len(units)
        assert units.decode(encoded) == text
    assert isinstance(units, SentencePieceUnits)
    assert all(isinstance(unit, int) for unit in units.encode("unknown: ß"))


@pytest.mark.parametrize("kind", ["char", "sentencepiece"])
def test_loaded_units_are_the_trained_ones(kind: str) -> None:
    units = train_units(kind, TEXTS, vocab_size=20)
    loaded = load_units(units.kind, units.data)
    assert loaded.kind == kind and len(loaded) == len(units)
    assert [loaded.encode(text) for text in TEXTS] == [units.encode(text) for text in TEXTS]


def test_errors() -> None:
    with pytest.raises(ValueError, match="no transcripts to take characters from"):
        train_units("char", [], vocab_size=0)
    with pytest.raises(ValueError, match=r"student.vocab_size 5000 does not fit the transcripts"):
        train_units("sentencepiece", TEXTS, vocab_size=5000)
    with pytest.raises(ValueError, match=r"units of kind 'words'; this version knows char and sentencepiece"):
        load_units("words", "")
