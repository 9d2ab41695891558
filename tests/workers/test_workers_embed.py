"""One bad utterance never costs another one, and a batch too large is done in halves."""

import gc
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from workers_fakes import FakeTeacher, WatchedLoader, make_cuts, make_embedder

from mvqkd.workers.embed import Embedded, LeftOut


def split(results: Sequence[Embedded | LeftOut]) -> tuple[dict[str, Embedded], dict[str, LeftOut]]:
    good = {result.cut.id: result for result in results if isinstance(result, Embedded)}
    bad = {result.cut.id: result for result in results if isinstance(result, LeftOut)}
    assert len(good) + len(bad) == len(results)
    return good, bad


def test_every_cut_has_its_embeddings(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.9, 0.3, 0.7, 0.4])
    teacher = FakeTeacher()
    embedder = make_embedder(teacher)
    results = list(embedder(cuts))
    good, bad = split(results)
    assert not bad and [result.cut.duration for result in results] == [0.9, 0.7, 0.5, 0.4, 0.3]
    assert all(max(lengths) * len(lengths) <= 32_000 for lengths in teacher.batches)
    for cut in cuts:
        (alone,) = embedder([cut])
        assert isinstance(alone, Embedded)
        assert good[cut.id].num_samples == round(cut.duration * 16_000)
        assert torch.equal(good[cut.id].embeddings_TD, alone.embeddings_TD)
    assert list(embedder([])) == []


def test_bad_audio_is_left_out(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4, 0.3])
    (tmp_path / "u001.wav").unlink()
    good, bad = split(list(make_embedder()(cuts)))
    assert sorted(good) == ["u000", "u002"]
    left_out = bad["u001"]
    assert (left_out.stage, left_out.error) == ("load", "UtteranceError")
    assert left_out.message.startswith(f"u001: {tmp_path}/u001.wav: no such audio file")


def test_nan_from_the_teacher_costs_that_utterance_only(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.49, 0.48, 0.47])
    teacher = FakeTeacher()
    teacher.nan_samples = {7840, 7520}
    good, bad = split(list(make_embedder(teacher)(cuts)))
    assert sorted(good) == ["u000", "u002"]
    assert sorted(bad) == ["u001", "u003"]
    assert (bad["u001"].stage, bad["u001"].error) == ("teacher", "NonFiniteEmbeddingError")
    assert bad["u001"].message == (
        "u001: the teacher's embeddings hold NaN or infinity: "
        "load the teacher with dtype float32, not float16"
    )
    # The good ones of the batch are not computed again.
    assert len(teacher.batches) == 1


def test_lengths_that_the_teacher_does_not_take(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.02, 0.9, 0.01, 0.4])
    good, bad = split(list(make_embedder(FakeTeacher(max_samples=10_000), batch_seconds=10.0)(cuts)))
    assert sorted(good) == ["u000", "u004"]
    assert bad["u002"].message == "u002: has 14400 samples: cut it"
    assert bad["u002"].error == "UtteranceTooLongError"
    assert bad["u001"].message == "u001: has 320 samples: leave it out"
    assert bad["u003"].error == "UtteranceTooShortError"


def test_many_bad_utterances_in_one_batch(tmp_path: Path) -> None:
    (short,) = make_cuts(tmp_path, [0.02])
    results = list(make_embedder(batch_seconds=100.0)([short] * 1100))
    assert len(results) == 1100 and all(isinstance(result, LeftOut) for result in results)


def test_batch_too_large_for_the_device_is_halved(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5] * 7)
    teacher = FakeTeacher(oom_samples=16_000)
    good, bad = split(list(make_embedder(teacher, batch_seconds=4.0)(cuts)))
    assert sorted(good) == [cut.id for cut in cuts] and not bad
    assert sum(map(len, teacher.batches)) == 7
    assert max(map(len, teacher.batches)) == 2


def test_utterance_too_large_for_the_device_is_told_from_a_bad_one(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.9, 0.4])
    good, bad = split(list(make_embedder(FakeTeacher(oom_samples=8000), batch_seconds=4.0)(cuts)))
    assert sorted(good) == ["u000", "u002"]
    assert bad["u001"].stage == "device"
    assert bad["u001"].message == (
        "u001: the device has no memory for an utterance of 0.9 s alone; lower corpus.max_duration_s, "
        "use a smaller teacher.dtype, a larger device, or let nothing else run on it (CUDA out of memory)"
    )


def test_utterance_is_tried_again_with_the_memory_given_back(tmp_path: Path) -> None:
    class Fragmented(FakeTeacher):
        refusals = 0

        def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
            if self.refusals < 3:
                self.refusals += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode(waveforms)

    teacher = Fragmented()
    good, bad = split(list(make_embedder(teacher, batch_seconds=4.0)(make_cuts(tmp_path, [0.5] * 4))))
    # Four, two, one, and that one again.
    assert len(good) == 4 and not bad and teacher.batches == [[8000], [8000], [8000, 8000]]


def test_two_batches_are_decoded_ahead_and_no_more(tmp_path: Path) -> None:
    """The first batches have one long cut each, the last one has many short ones."""
    cuts = make_cuts(tmp_path, [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, *[0.1] * 20])
    started: list[str] = []
    embedder = make_embedder()
    embedder.feeder._loader = WatchedLoader(lambda cut: started.append(cut.id))
    results = embedder(cuts)
    next(results)
    time.sleep(0.3)
    assert sorted(started) == ["u000", "u001", "u002"]
    assert len(list(results)) == 25 and len(started) == 26


def test_memory_of_a_failed_batch_is_given_back_before_the_halves(tmp_path: Path) -> None:
    class Greedy(FakeTeacher):
        alive: list[int]
        held: "list[weakref.ref[Tensor]]"

        def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
            self.alive.append(sum(ref() is not None for ref in self.held))
            activations = torch.zeros(1000)
            self.held.append(weakref.ref(activations))
            return super().encode(waveforms)

    teacher = Greedy(oom_samples=16_000)
    teacher.alive, teacher.held = [], []
    gc.disable()
    try:
        list(make_embedder(teacher, batch_seconds=4.0)(make_cuts(tmp_path, [0.5] * 4)))
    finally:
        gc.enable()
    assert len(teacher.alive) == 3 and teacher.alive == [0, 0, 0]


def test_other_errors_end_the_stream(tmp_path: Path) -> None:
    class Broken(FakeTeacher):
        def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(make_embedder(Broken())(make_cuts(tmp_path, [0.5])))
