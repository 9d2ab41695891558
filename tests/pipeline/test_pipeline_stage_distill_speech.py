"""The distill stage on speech without transcripts, from another student, on further targets; and its log."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboardX.proto.event_pb2 import Event
from tiny import Done, copy_of, make_run

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.storage.location import open_location
from mvqkd.workers.distill.student_record import load_record

pytestmark = pytest.mark.integration
QUICK = ("distill.epochs=2", "distill.batch_seconds=30", "distill.loss_scale=0.2")


def test_codes_alone_and_then_with_transcripts(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    elsewhere = f"table.path={tmp_path}/run/table"
    before = make_run(
        tree, tmp_path, *QUICK, elsewhere, "distill.pretrain=true", f"storage.root={tmp_path}/pre"
    )
    distill_stage(before)
    record = load_record(before.student("mvqkd"))
    assert any(name.startswith("output") for name in record.untrained)
    assert before.reports.read("distill", "mvqkd")["curve"][-1]["codebook_loss"] > 0
    start = f"distill.init={tmp_path}/pre/students/mvqkd"
    run = make_run(tree, tmp_path, *QUICK, start, "distill.lr=1e-9", "distill.warmup_steps=0")
    plain = make_run(tree, tmp_path, *QUICK, "distill.lr=1e-9", "distill.warmup_steps=0", f"storage.root={tmp_path}/b",
                     elsewhere)  # fmt: skip
    summary, other = distill_stage(run), distill_stage(plain)
    assert summary["digest"] != other["digest"]
    weights = {
        name: load_file(tmp_path / folder / "students/mvqkd/student.safetensors")
        for name, folder in (("pre", "pre"), ("run", "run"), ("plain", "b"))
    }
    key = "encoder.layers.0.ffn1.sequential.1.weight"
    np.testing.assert_allclose(weights["run"][key], weights["pre"][key], atol=1e-5)
    assert not np.allclose(weights["plain"][key], weights["pre"][key], atol=1e-4, rtol=0)
    assert decode_stage(run)["utterances"] == 3
    with pytest.raises(StageError, match=r"distill\.init: .*name the folder of a student that was trained"):
        distill_stage(make_run(tree, tmp_path, *QUICK, f"distill.init={tmp_path}/nowhere"))


def test_other_tables_are_read_without_their_transcripts(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    with pytest.raises(StageError, match=r"every row of .*table has a transcript that counts; name tables"):
        distill_stage(make_run(tree, tmp_path, *QUICK, "distill.untranscribed=1.0"))
    others = {"untranscribed": 1.0, "untranscribed_from": [f"{tmp_path}/run/table"]}
    tree["distill"] = {**tree["distill"], **others}
    run = make_run(tree, tmp_path, *QUICK)
    distill_stage(run)
    hours = run.reports.read("distill", "mvqkd")["curve"][-1]["hours"]
    assert hours > 1.5 * hours_without(tree, tmp_path)
    tree["distill"]["untranscribed_from"] = [f"{tmp_path}/none"]
    with pytest.raises(StageError, match=r"distill\.untranscribed_from\.0: .*none"):
        distill_stage(make_run(tree, tmp_path, *QUICK))


def hours_without(tree: dict[str, Any], tmp_path: Path) -> float:
    """Hours that the same training hears of its own table."""
    plain = {
        **tree,
        "distill": {k: v for k, v in tree["distill"].items() if not k.startswith("untranscribed")},
    }
    run = make_run(
        plain, tmp_path, *QUICK, f"storage.root={tmp_path}/plain", f"table.path={tmp_path}/run/table"
    )
    distill_stage(run)
    return run.reports.read("distill", "mvqkd")["curve"][-1]["hours"]


def test_a_live_teacher_beside_the_table_and_a_held_out_part(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    targets = {"live": {"student_layer": 2, "scale": 0.01}, "coded": {"quantized": True, "student_layer": 1}}
    tree["distill"] = {**tree["distill"], "targets": targets, "valid_hours": 0.0005}
    run = make_run(tree, tmp_path, *QUICK)
    summary = distill_stage(run)
    last = run.reports.read("distill", "mvqkd")["curve"][-1]
    assert set(last["head_losses"]) == {"codebook", "live", "coded"}
    assert summary["valid_wer"] >= 0 and last["valid_wer"] is not None
    assert load_record(run.student("mvqkd")).valid_wer == summary["valid_wer"]


def test_the_course_of_a_training_is_kept_in_lines_and_for_tensorboard(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table"), tmp_path, *QUICK)
    summary = distill_stage(run)
    lines = [
        json.loads(line) for line in (tmp_path / "run/students/mvqkd/training.jsonl").read_text().splitlines()
    ]
    assert [line.pop("digest") for line in lines] == [summary["digest"]] * len(lines)
    assert lines == run.reports.read("distill", "mvqkd")["curve"] and lines[-1]["done"] == 1.0
    events = open_location(str(tmp_path / "run/students/mvqkd/tensorboard"))
    (name,) = events.list()
    losses = {
        event.step: value.simple_value
        for event in read_events(events.read_bytes(name))
        for value in event.summary.value
        if value.tag == "loss/codebook"
    }
    assert losses == {line["step"]: pytest.approx(line["codebook_loss"]) for line in lines}


def read_events(content: bytes) -> list[Event]:
    """TFRecords: length, its checksum, an event, its checksum."""
    events, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return events
