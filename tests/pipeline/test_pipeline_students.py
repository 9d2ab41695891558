"""Students of other kinds through the stages: trained, stored, recognized with, and heard while audio comes in."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import Done, copy_of, make_run

from mvqkd.models.decoding.emission import hear
from mvqkd.models.decoding.streaming import StreamingDecoder
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.workers.distill.student_record import load_student, save_student

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("loss", ["transducer", "ctc"])
def test_an_emformer_says_the_same_while_it_hears(loss: str, done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    student = {key: value for key, value in tree["student"].items() if key != "conv_kernel"}
    student |= {
        "kind": "emformer",
        "loss": loss,
        "segment_ms": 160,
        "left_context_ms": 320,
        "right_context_ms": 80,
    }
    tree = {**tree, "student": student, "students": {"live": {}}}
    run = make_run(tree, tmp_path, "distill.epochs=12", "distill.lr=0.01", "distill.warmup_steps=1")
    distill_stage(run)
    curve = run.reports.read("distill", "live")["curve"]
    assert curve[-1]["codebook_loss"] < curve[0]["codebook_loss"]
    assert curve[-1]["transducer_loss"] < curve[0]["transducer_loss"]
    trained, units, record = load_student(run.student("live"))
    # So short a training teaches it to say nothing; without blank, every frame says something.
    state = trained.state_dict()
    state["output.bias"][0] -= 1000.0
    save_student(run.student("live"), state, record)
    delay = decode_stage(run)["delay"]
    lines = (tmp_path / "run/students/live/errors.jsonl").read_text().splitlines()
    assert (record.student["kind"], record.student.get("loss", "transducer")) == ("emformer", loss)
    decoder, longest_s = StreamingDecoder(trained), 0.0
    for line in map(json.loads, lines):
        path = Path(tree["corpus"]["root"]) / "audio" / "test" / f"{line['cut_id']}.flac"
        waveform_T = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        timed = hear(decoder, waveform_T, chunk_samples=1600)
        assert " ".join(units.decode([unit.unit for unit in timed]).split()) == line["hypothesis"]
        assert line["delays"]["waits_s"] == [unit.heard_s - unit.time_s for unit in timed]
        assert line["delays"]["words_s"] is None
        longest_s = max([longest_s, *line["delays"]["waits_s"]])
    assert (delay["utterances"], delay["aligned"], delay["words"]) == (len(lines), 0, None)
    assert delay["latency_s"] == trained.latency_s
    assert 0 < delay["waits"]["longest_s"] == longest_s <= trained.latency_s + 0.1
    assert "delay" not in decode_stage(
        make_run(
            tree,
            tmp_path,
            "distill.epochs=12",
            "distill.lr=0.01",
            "distill.warmup_steps=1",
            "decode.delay_utterances=0",
        )
    )
    # A student of another kind is another one.
    with pytest.raises(StageError, match=r"trained with .*student\.kind 'emformer', now 'conformer'"):
        decode_stage(make_run({**tree, "student": done[0]["student"]}, tmp_path))


def test_a_class_that_is_not_there_is_named_when_it_is_built(done: Done, tmp_path: Path) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    tree = {**tree, "student": {"kind": "own", "import_path": "not_there.at_all:Student"}}
    run = make_run(tree, tmp_path)  # a run file is read without it
    with pytest.raises(ValueError, match=r"student\.import_path not_there\.at_all:Student: No module named"):
        distill_stage(run)
