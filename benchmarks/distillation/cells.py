"""The systems that are compared: what their run file has, and in which folds they are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ALL = (0, 1, 2, 3)

# As in configs/an4.yaml.
STUDENT: Mapping[str, Any] = {
    "encoder_dim": 128, "num_layers": 6, "ffn_dim": 256, "dropout": 0.0,
}  # fmt: skip
DISTILL: Mapping[str, Any] = {
    "loss_scale": 0.2, "student_layer": 4, "epochs": 40, "batch_seconds": 30.0, "lr": 1.0e-3, "ctc_scale": 0.3,
}  # fmt: skip
# A tenth of the transcripts are ten times as many epochs for as many steps.
_TENTH: Mapping[str, Any] = {"transcribed_hours": 0.06, "epochs": 400, "average_epochs": 50}
_THIRD: Mapping[str, Any] = {"transcribed_hours": 0.18, "epochs": 133, "average_epochs": 17}
_EMFORMER: Mapping[str, Any] = {"kind": "emformer"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One system.

    Attributes:
        title: what it is called in the table.
        table: the run whose table it is trained from, a key of `TABLES`.
        student, distill: what it has that the others have not.
        folds: in which it is trained.
    """

    title: str
    table: str = "codes-8"
    student: Mapping[str, Any] = field(default_factory=dict)
    distill: Mapping[str, Any] = field(default_factory=dict)
    folds: Sequence[int] = ALL


TABLES: Mapping[str, Mapping[str, Any]] = {
    "codes-8": {"quantizer": {"num_codebooks": 8}},
    "codes-8-fast": {"quantizer": {"num_codebooks": 8}, "extract": {"search": "fast"}},
    "codes-4": {"quantizer": {"num_codebooks": 4}},
    "codes-16": {"quantizer": {"num_codebooks": 16}},
    "paper-8": {"quantizer": {"num_codebooks": 8, "method": "paper"}},
    "embeddings": {"table": {"target": "embeddings"}},
}
"""What the run file of each table has besides the teacher and the corpus; codes are searched in full where nothing is
said."""

# The scales of distances make their losses, at a student that predicts the mean embedding, as large as that of the
# codes at one that predicts nothing: 17 a frame of the student. (Whisper base, layer 3: a frame is 73 from the mean
# squared, 140 in absolute differences, and 0.15 in cosine.)
CELLS: Mapping[str, Cell] = {
    "none": Cell(title="no distillation", distill={"loss_scale": 0.0}),
    "mvq-8": Cell(title="MVQ, 8 codebooks"),
    "semi-10-none": Cell(title="10 % of the transcripts alone", distill={**_TENTH, "loss_scale": 0.0}),
    "semi-10-mvq": Cell(
        title="10 % of the transcripts, codes of all", distill={**_TENTH, "untranscribed": 1.0}
    ),
    "l2": Cell(title="L2 on embeddings", table="embeddings", distill={"distance": "l2", "loss_scale": 0.12}),
    "l1": Cell(
        title="L1 on embeddings",
        table="embeddings",
        distill={"distance": "l1", "loss_scale": 0.06},
        folds=(0,),
    ),
    "cosine": Cell(
        title="cosine on embeddings",
        table="embeddings",
        distill={"distance": "cosine", "loss_scale": 110.0},
        folds=(0,),
    ),
    "streaming-none": Cell(
        title="streaming, no distillation", student=_EMFORMER, distill={"loss_scale": 0.0}
    ),
    "streaming-mvq-8": Cell(title="streaming, MVQ, 8 codebooks", student=_EMFORMER),
    "mvq-8-fast": Cell(title="MVQ, 8 codebooks, fast search", table="codes-8-fast", folds=(0, 1)),
    "mvq-4": Cell(title="MVQ, 4 codebooks", table="codes-4", folds=(0,)),
    "mvq-16": Cell(title="MVQ, 16 codebooks", table="codes-16", folds=(0,)),
    "joint-8": Cell(title="MVQ, 8 codebooks, joint", distill={"joint": True}, folds=(0,)),
    "paper-8": Cell(title="MVQ, 8 codebooks, quantizer fitted as in the paper", table="paper-8", folds=(0,)),
    "live-l2": Cell(
        title="live teacher, L2",
        distill={
            "loss_scale": 0.0,
            "targets": {"live": {"student_layer": 4, "scale": 0.12, "distance": "l2"}},
        },
        folds=(0,),
    ),
    "semi-30-none": Cell(
        title="30 % of the transcripts alone", distill={**_THIRD, "loss_scale": 0.0}, folds=(0,)
    ),
    "semi-30-mvq": Cell(
        title="30 % of the transcripts, codes of all", distill={**_THIRD, "untranscribed": 1.0}, folds=(0,)
    ),
}
"""In the order in which they are run: what decides most comes first."""


def run_file(name: str, *, teacher: str, layer: int, fold: str, root: str) -> dict[str, Any]:
    """The run file of a system in a fold."""
    cell = CELLS[name]
    own = TABLES[cell.table]
    students = {name: {"student": dict(cell.student), "distill": dict(cell.distill)}}
    return {
        "corpus": {
            "format": "cuts", "train": f"{fold}/train.jsonl", "test": f"{fold}/test.jsonl", "max_duration_s": 20.0,
        },
        "teacher": {"path": teacher, "layer": layer},
        "quantizer": {"sample_hours": 1.0, **own.get("quantizer", {})},
        "extract": {"shard_hours": 0.1, "batch_seconds": 60.0, "search": "full", **own.get("extract", {})},
        "table": dict(own.get("table", {})),
        "student": dict(STUDENT),
        "distill": dict(DISTILL),
        "students": students,
        # One thread: sums do not depend on how many a machine has, and two folds can be run beside each other.
        "cluster": {"address": "none", "num_cpus": 1},
        "storage": {"root": root},
    }  # fmt: skip
