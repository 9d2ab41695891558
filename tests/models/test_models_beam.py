"""Beam search: against all alignments of small cases, against greedy search, and in batches."""

import itertools
import math

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.decoding.beam import beam_ctc, beam_transducer, modified_beam_transducer
from mvqkd.models.decoding.greedy import greedy_ctc, greedy_transducer

CONTEXT = 2


def random_transducer(num_units: int, channels: int = 6, seed: int = 0, sharpness: float = 2.0):
    """Functions as the searches take them, of random weights."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(num_units, num_units, channels, generator=generator)
    output = torch.randn(channels, num_units, generator=generator) * sharpness
    return {
        "predict": lambda history_BC: table[history_BC[:, 0], history_BC[:, 1]],
        "join": lambda encoded_BJ, predicted_BJ: torch.tanh(encoded_BJ + predicted_BJ) @ output,
        "context": CONTEXT,
    }


def padded(frames: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_sequence(frames, batch_first=True, padding_value=9.0), torch.tensor([len(f) for f in frames])


def total(texts: dict, units: tuple, log_prob: float) -> None:
    texts[units] = math.log(math.exp(texts.get(units, -math.inf)) + math.exp(log_prob))


def all_texts_of_transducer(
    frames_SJ: torch.Tensor, functions: dict, num_units: int, *, most: int | None
) -> dict:
    """The log-probability of every text, summed over its alignments.

    A frame has at most `most` units and a blank; or, where that is None, one unit or a blank.
    """
    if most is None:
        in_frame = [(unit,) for unit in range(num_units)]
    else:
        some = (itertools.product(range(1, num_units), repeat=number) for number in range(most + 1))
        in_frame = [(*units, 0) for units in itertools.chain(*some)]
    texts: dict = {}
    for alignment in itertools.product(in_frame, repeat=len(frames_SJ)):
        units, log_prob = (0,) * CONTEXT, 0.0
        for frame_J, labels in zip(frames_SJ, alignment, strict=True):
            for label in labels:
                predicted = functions["predict"](torch.tensor([units[-CONTEXT:]]))
                log_prob += float(functions["join"](frame_J[None], predicted)[0].log_softmax(-1)[label])
                units += (label,) if label else ()
        total(texts, units[CONTEXT:], log_prob)
    return texts


def all_texts_of_ctc(logits_SV: torch.Tensor) -> dict:
    texts: dict = {}
    log_prob_SV = logits_SV.log_softmax(-1)
    for path in itertools.product(range(logits_SV.shape[1]), repeat=len(logits_SV)):
        units = tuple(unit for unit, _ in itertools.groupby(path) if unit)
        total(texts, units, float(sum(log_prob_SV[s, unit] for s, unit in enumerate(path))))
    return texts


def assert_same(found: list, expected: dict) -> None:
    got = {tuple(h.units): h.log_prob for h in found}
    assert len(got) == len(found) == len(expected)
    for units, log_prob in expected.items():
        assert got[units] == pytest.approx(log_prob, abs=1e-4), units


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_holds_all_finds_the_probability_of_every_text(seed: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(length, 6, generator=generator) for length in (3, 1, 2)]
    functions = random_transducer(3, seed=seed)
    found = beam_transducer(*padded(frames), **functions, beam=127, max_units_per_frame=most)
    for one, frames_SJ in zip(found, frames, strict=True):
        expected = all_texts_of_transducer(frames_SJ, functions, 3, most=most)
        assert_same(one, expected)
        assert tuple(one[0].units) == max(expected, key=expected.__getitem__)


@pytest.mark.parametrize("seed", range(3))
def test_modified_search_with_a_beam_that_holds_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(length, 6, generator=generator) for length in (5, 2, 4, 1)]
    functions = random_transducer(3, seed=seed)
    found = modified_beam_transducer(*padded(frames), **functions, beam=63)
    for one, frames_SJ in zip(found, frames, strict=True):
        expected = all_texts_of_transducer(frames_SJ, functions, 3, most=None)
        assert_same(one, expected)
        assert sum(math.exp(h.log_prob) for h in one) == pytest.approx(1, abs=1e-4)
        normed = {units: log_prob / (len(units) + CONTEXT) for units, log_prob in expected.items()}
        assert tuple(one[0].units) == max(normed, key=normed.__getitem__)


@pytest.mark.parametrize("seed", range(4))
def test_ctc_with_a_beam_that_holds_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # A unit and blank that are likely everywhere make texts with repetitions, which need a blank between.
    logits = [torch.randn(length, 3, generator=generator) * 2 for length in (5, 1, 4)]
    found = beam_ctc(*padded(logits), beam=63)
    for one, logits_SV in zip(found, logits, strict=True):
        expected = all_texts_of_ctc(logits_SV)
        assert_same(one, expected)
        assert tuple(one[0].units) == max(expected, key=expected.__getitem__)
    assert any(tuple(h.units)[:2] == (1, 1) for h in found[0])


@pytest.mark.parametrize("seed", range(5))
def test_a_modified_beam_of_one_is_greedy_search(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(length, 6, generator=generator) * 2 for length in (30, 7, 19)]
    functions = random_transducer(8, seed=seed)
    greedy = greedy_transducer(*padded(frames), **functions, max_units_per_frame=1)
    assert [one[0].units for one in modified_beam_transducer(*padded(frames), **functions, beam=1)] == greedy
    assert max(map(len, greedy)) > 5


@pytest.mark.parametrize("beam", [1, 3])
def test_of_a_sure_transducer_a_beam_of_any_size_finds_what_greedy_search_finds(beam: int) -> None:
    """One that says the unit of the frame, then blank."""
    units = [[3, 3, 0, 1, 2, 1], [0, 4], [2]]
    frames = [40.0 * torch.nn.functional.one_hot(torch.tensor(one), 5).float() for one in units]

    def join(encoded_BJ: torch.Tensor, predicted_BJ: torch.Tensor) -> torch.Tensor:
        said_B1 = (encoded_BJ * predicted_BJ).sum(dim=-1, keepdim=True)
        return torch.cat([encoded_BJ[:, :1] + 2 * said_B1, encoded_BJ[:, 1:]], dim=-1)

    functions = {
        "predict": lambda history_BC: torch.nn.functional.one_hot(history_BC[:, -1], 5).float(),
        "join": join,
        "context": CONTEXT,
    }
    expected = [[3, 1, 2, 1], [4], [2]]
    assert greedy_transducer(*padded_with_blank(frames), **functions) == expected
    found = beam_transducer(*padded_with_blank(frames), **functions, beam=beam)
    assert [one[0].units for one in found] == expected
    assert all(one[0].log_prob == pytest.approx(0, abs=1e-3) for one in found)


def padded_with_blank(frames: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_sequence(frames, batch_first=True), torch.tensor([len(f) for f in frames])


def test_a_beam_of_one_of_sure_ctc_is_greedy_search() -> None:
    logits = [
        torch.randn(length, 5, generator=torch.Generator().manual_seed(length)) * 50 for length in (40, 9)
    ]
    assert [one[0].units for one in beam_ctc(*padded(logits), beam=1)] == greedy_ctc(*padded(logits))


def test_a_beam_finds_what_greedy_search_misses() -> None:
    """Two alignments of one text, of 0.3 each, against one of 0.4 of another."""
    probability_SV = torch.tensor([[0.4, 0.6], [0.4, 0.6]])
    # Blank, blank: 0.16; the text (1): 0.36 + 0.24 + 0.24.
    assert beam_ctc(probability_SV.log()[None], torch.tensor([2]), beam=2)[0][0].units == [1]
    probability_SV = torch.tensor([[0.55, 0.45], [0.55, 0.45]])
    assert greedy_ctc(probability_SV.log()[None], torch.tensor([2])) == [[]]
    best = beam_ctc(probability_SV.log()[None], torch.tensor([2]), beam=2)[0][0]
    assert best.units == [1] and best.log_prob == pytest.approx(math.log(1 - 0.55**2), abs=1e-5)


@pytest.mark.parametrize("beam", [1, 3, 5])
def test_a_batch_is_searched_as_each_utterance(beam: int) -> None:
    generator = torch.Generator().manual_seed(3)
    frames = [torch.randn(length, 6, generator=generator) for length in (25, 1, 13, 40)]
    functions = random_transducer(7)
    for search in (
        lambda *batch: beam_transducer(*batch, **functions, beam=beam),
        lambda *batch: modified_beam_transducer(*batch, **functions, beam=beam),
        lambda *batch: beam_ctc(*batch, beam=beam),
    ):
        together = search(*padded(frames))
        for own, one in zip(frames, together, strict=True):
            alone = search(*padded([own]))[0]
            assert [h.units for h in alone] == [h.units for h in one]
            assert [h.log_prob for h in alone] == pytest.approx([h.log_prob for h in one], abs=1e-3)


def test_hypotheses_are_different_and_in_order() -> None:
    frames = [torch.randn(30, 6, generator=torch.Generator().manual_seed(1))]
    functions = random_transducer(5, sharpness=0.7)
    for search in (beam_transducer, modified_beam_transducer):
        one = search(*padded(frames), **functions, beam=8)[0]
        assert len({tuple(h.units) for h in one}) == len(one) == 8
        modified = search is modified_beam_transducer
        order = [h.log_prob / (len(h.units) + CONTEXT if modified else 1) for h in one]
        assert order == sorted(order, reverse=True) and len(set(order)) > 1


def test_an_utterance_without_frames_is_empty_and_a_beam_of_none_is_refused() -> None:
    functions = random_transducer(4)
    nothing = torch.zeros(2, 0, 6), torch.zeros(2, dtype=torch.long)
    for search in (beam_transducer, modified_beam_transducer):
        assert [[h.units for h in one] for one in search(*nothing, **functions)] == [[[]], [[]]]
        with pytest.raises(ValueError, match=r"decode\.beam is a number from 1"):
            search(*nothing, **functions, beam=0)
    assert beam_ctc(torch.zeros(1, 3, 4), torch.tensor([0]))[0][0].units == []
    with pytest.raises(ValueError, match=r"decode\.beam is a number from 1"):
        beam_ctc(torch.zeros(1, 1, 2), torch.tensor([1]), beam=0)
