"""Output units of the student: characters or SentencePiece pieces; 0 is blank."""

import io
from collections.abc import Iterable, Sequence
from typing import Protocol

import sentencepiece

BLANK_SYMBOL, SPACE_SYMBOL = "<blk>", "▁"


class Units(Protocol):
    """Text to units and back. `kind` and `data` are what a checkpoint stores."""

    kind: str

    @property
    def data(self) -> str: ...

    def __len__(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, units: Sequence[int]) -> str: ...

    def symbols(self) -> list[str]: ...


class CharUnits:
    """One unit for each character of the training transcripts."""

    kind = "char"

    def __init__(self, alphabet: str) -> None:
        self.data = alphabet
        self._index = {character: number for number, character in enumerate(alphabet, start=1)}

    def __len__(self) -> int:
        return len(self.data) + 1

    def encode(self, text: str) -> list[int]:
        """Units of `text`.

        Raises:
            ValueError: a character that the training transcripts did not have.
        """
        unknown = sorted(set(text) - set(self._index))
        if unknown:
            raise ValueError(f"transcript {text!r} has characters outside the alphabet: {unknown}")
        return [self._index[character] for character in text]

    def decode(self, units: Sequence[int]) -> str:
        """Text of `units`."""
        return "".join(self.data[unit - 1] for unit in units)

    def symbols(self) -> list[str]:
        """What stands for each unit in a `tokens.txt`, with `▁` for a space."""
        return [BLANK_SYMBOL, *self.data.replace(" ", SPACE_SYMBOL)]


class SentencePieceUnits:
    """SentencePiece unigram pieces; `data` is the serialized model, hexadecimal."""

    kind = "sentencepiece"

    def __init__(self, data: str) -> None:
        self.data = data
        self._model = sentencepiece.SentencePieceProcessor(model_proto=bytes.fromhex(data))

    def __len__(self) -> int:
        return self._model.get_piece_size() + 1

    def encode(self, text: str) -> list[int]:
        """Units of `text`; unknown characters become the unknown piece."""
        return [piece + 1 for piece in self._model.encode(text)]

    def decode(self, units: Sequence[int]) -> str:
        """Text of `units`."""
        return self._model.decode([unit - 1 for unit in units])

    def symbols(self) -> list[str]:
        """What stands for each unit in a `tokens.txt`, with `▁` for a space."""
        return [
            BLANK_SYMBOL,
            *(self._model.id_to_piece(piece) for piece in range(self._model.get_piece_size())),
        ]


def train_units(kind: str, texts: Iterable[str], *, vocab_size: int) -> Units:
    """Units that cover `texts` (the training transcripts only).

    Raises:
        ValueError: no text at all, or SentencePiece cannot make `vocab_size` pieces of them.
    """
    if kind == "char":
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        alphabet = "".join(sorted(characters))
        if not alphabet:
            raise ValueError("no transcripts to take characters from: the training part has no text")
        return CharUnits(alphabet)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            character_coverage=1.0,
            minloglevel=2,
            bos_id=-1,
            eos_id=-1,
        )
    except RuntimeError as error:
        raise ValueError(f"student.vocab_size {vocab_size} does not fit the transcripts: {error}") from error
    return SentencePieceUnits(model.getvalue().hex())


def load_units(kind: str, data: str) -> Units:
    """Units from what a checkpoint stores. Raises ValueError for a kind that there is not."""
    if kind not in ("char", "sentencepiece"):
        raise ValueError(f"units of kind {kind!r}; this version knows char and sentencepiece")
    return CharUnits(data) if kind == "char" else SentencePieceUnits(data)
