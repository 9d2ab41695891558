"""Tables of the teacher's embeddings, alone and beside tables of codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import MonoCut
from tiny import objects
from workers_fakes import (
    DIM,
    FakeTeacher,
    make_contract,
    make_contract_of_embeddings,
    make_cuts,
    make_embedder,
    make_plan,
    make_quantizer,
)

from mvqkd.storage.failures import read_failures
from mvqkd.storage.location import Location, open_location
from mvqkd.storage.table import IndexTable, check_row_matches
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import identity
from mvqkd.workers.extract import Extractor
from mvqkd.workers.shard import Shard


def make_table(folder: Path, *, layer: int = 1) -> IndexTable:
    return IndexTable.create(open_location(str(folder)), make_contract_of_embeddings(layer=layer))


def one_shard(tmp_path: Path, cuts: list[MonoCut]) -> tuple[Location, Shard]:
    plan, (shard,) = make_plan(tmp_path / "plan", cuts, per_shard=len(cuts))
    return plan, shard


class Loud(FakeTeacher):
    """Its embeddings of layer n of utterances of 4,800 samples reach n times `largest`."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def encode(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:  # type: ignore[override]
        embeddings = super().encode(waveforms)
        for waveform_T, x_TD in zip(waveforms, embeddings, strict=True):
            if len(waveform_T) == 4800:
                x_TD[2, 3] = -self.largest
        return embeddings


def test_embeddings_of_each_utterance_rounded_to_half(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.3, 0.9, 0.5], texts=["one", "two", None])
    cuts[1] = cuts[1].perturb_speed(1.1)
    plan, shard = one_shard(tmp_path, cuts)
    table = make_table(tmp_path / "table", layer=2)
    extractor = Extractor(embedder=make_embedder(), tables=[(table, None)], plan=plan)
    report = extractor.run(shard)
    ((name, summary),) = report.tables
    assert name == shard.name(table.contract.digest()) and (summary.rows, report.num_left_out) == (3, 0)
    rows = list(table.iter_rows())
    assert [row["cut_id"] for row in rows] == ["u000", "u001_sp1.1", "u002"]
    loader = AudioLoader(16_000)
    for row, cut in zip(rows, cuts, strict=True):
        waveform_T = loader(cut)
        check_row_matches(row, **identity(cut, waveform_T.numel()))
        (x_TD,) = FakeTeacher().encode([waveform_T])
        assert row["embeddings"].shape == (row["num_frames"], DIM)
        np.testing.assert_array_equal(row["embeddings"], (2 * x_TD).numpy().astype(np.float16))
    meters = extractor.meters.read()
    assert (meters["frames"], meters["rrl_frames"]) == (summary.frames, 0.0)
    # The same job again does nothing, another one writes the same bytes.
    before = objects(table.location)
    assert extractor.run(shard).tables == report.tables and objects(table.location) == before
    other = make_table(tmp_path / "other", layer=2)
    Extractor(embedder=make_embedder(), tables=[(other, None)], plan=plan).run(shard)
    assert objects(other.location) == before


def test_codes_and_embeddings_of_one_pass(tmp_path: Path) -> None:
    """Each table is what a pass of its own gives, and the teacher runs once."""
    cuts = make_cuts(tmp_path / "audio", [0.4, 0.3, 0.5])
    plan, shard = one_shard(tmp_path, cuts)
    Path(cuts[2].recording.sources[0].source).unlink()

    def tables(name: str) -> list[tuple[IndexTable, object]]:
        codes = IndexTable.create(open_location(str(tmp_path / name / "codes")), make_contract())
        of_embeddings = (make_table(tmp_path / name / str(layer), layer=layer) for layer in (1, 3))
        return [(codes, make_quantizer()), *((each, None) for each in of_embeddings)]

    together, alone = tables("together"), tables("alone")
    teacher = FakeTeacher()
    report = Extractor(embedder=make_embedder(teacher), tables=together, plan=plan).run(shard)  # type: ignore[arg-type]
    assert len(teacher.batches) == 1 and report.num_left_out == 1 and len(report.tables) == 3
    for pair in alone:
        Extractor(embedder=make_embedder(), tables=[pair], plan=plan).run(shard)  # type: ignore[list-item]
    for (table, _), (same, _) in zip(together, alone, strict=True):
        assert objects(table.location) == objects(same.location)
        assert [failure.cut_id for failure in read_failures(table.location)] == ["u002"]


@pytest.mark.parametrize(
    ("largest", "layer", "kept"),
    [(65_504.0, 1, True), (65_505.0, 1, False), (40_000.0, 1, True), (40_000.0, 2, False), (1e6, 1, False)],
)
def test_what_float16_does_not_hold_costs_one_utterance_of_that_table(
    tmp_path: Path, largest: float, layer: int, kept: bool
) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.4, 0.3]))
    codes = IndexTable.create(open_location(str(tmp_path / "codes")), make_contract())
    table = make_table(tmp_path / "table", layer=layer)
    extractor = Extractor(
        embedder=make_embedder(Loud(largest)), tables=[(codes, make_quantizer()), (table, None)], plan=plan
    )
    report = extractor.run(shard)
    assert [row["cut_id"] for row in codes.iter_rows()] == ["u000", "u001"]
    assert report.num_left_out == 0 and read_failures(codes.location) == []
    assert [row["cut_id"] for row in table.iter_rows()] == ["u000", "u001"][: 1 + kept]
    failures = read_failures(table.location)
    assert [failure.cut_id for failure in failures] == ["u001"] * (not kept)
    for failure in failures:
        assert (failure.stage, failure.error) == ("teacher", "HalfRangeError")
        assert failure.message.startswith(
            f"u001: the teacher's embeddings reach {largest * layer:.6g}, and a table"
        )
    # Where embeddings are all that is extracted, it is nowhere.
    alone = make_table(tmp_path / "alone", layer=layer)
    extractor = Extractor(embedder=make_embedder(Loud(largest)), tables=[(alone, None)], plan=plan)
    assert extractor.run(shard).num_left_out == (not kept)
    assert objects(alone.location) == objects(table.location)
    assert extractor.run(shard).num_left_out == (not kept)  # found in the table


def test_embeddings_that_are_no_numbers_are_nowhere(tmp_path: Path) -> None:
    plan, shard = one_shard(tmp_path, make_cuts(tmp_path, [0.4, 0.3]))
    teacher = FakeTeacher()
    teacher.nan_samples = {4800}
    table = make_table(tmp_path / "table")
    report = Extractor(embedder=make_embedder(teacher), tables=[(table, None)], plan=plan).run(shard)
    assert report.num_left_out == 1
    (failure,) = read_failures(table.location)
    assert failure.error == "NonFiniteEmbeddingError"
