"""The students of `examples`: their run files train, store, load and recognize, and the codes reach them by hook."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import Done, copy_of, make_run

from mvqkd.models.students.build import build_student
from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.workers.distill.student_record import load_student

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = {"parakeet-ctc": "parakeet.yaml", "parakeet-rnnt": "parakeet.yaml", "wav2vec2-ctc": "wav2vec2.yaml"}
# Convolutions over 16,000 samples a second are what takes the time.
SMALLER = {"wav2vec2-ctc": ["student.options.conv_dim=[16, 16, 16, 16, 16, 16, 16]"]}


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_trains_from_its_run_file(name: str, done: Done, tmp_path: Path) -> None:
    theirs: dict[str, Any] = yaml.safe_load((EXAMPLES / NAMES[name]).read_text())
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    # All that is about the student is the example's; corpus, teacher and table are those of the tests.
    tree = {**tree, **{section: theirs[section] for section in ("student", "distill", "students")}}
    run = make_run(
        tree,
        tmp_path,
        "distill.epochs=4",
        "distill.warmup_steps=1",
        "distill.average_epochs=1",
        *SMALLER.get(name, ()),
    )
    summary = distill_stage(run, name)
    assert summary["steps"] >= 4 and summary["left_out"] == 0
    curve = run.reports.read("distill", name)["curve"]
    first, last = curve[0], curve[-1]
    assert last["codebook_loss"] < first["codebook_loss"], "nothing came through the hook"
    assert last["transducer_loss"] < first["transducer_loss"]  # its own loss, whichever that is
    student, _, record = load_student(run.student(name))
    assert record.student == run.config.student_settings(name)[0].to_dict()
    places = [tensor.data_ptr() for tensor in student.state_dict().values()]
    assert len(set(places)) == len(places), "a weight is stored under two names"
    assert decode_stage(run, name)["utterances"] == 3
    # The same training is not done again.
    assert distill_stage(run, name)["digest"] == summary["digest"]


@pytest.mark.parametrize("name", NAMES)
def test_in_a_batch_an_utterance_is_what_it_is_alone(name: str) -> None:
    config, _ = load_config(EXAMPLES / NAMES[name]).student_settings(name)
    torch.manual_seed(0)
    student = build_student(config, 9).eval()
    waveforms = [torch.randn(samples) * 0.1 for samples in (16_000, 5_000, 11_111, 700)]
    features = [student.features(waveform) for waveform in waveforms]
    lengths_B = torch.tensor([len(f) for f in features])
    batch_BTF = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    seen: list[torch.Tensor] = []
    student.layer(student.num_layers).register_forward_hook(
        lambda module, inputs, output: seen.append(student.layer_output(output))
    )
    with torch.no_grad():
        frames_B = student.encode(batch_BTF, lengths_B)
        assert frames_B.tolist() == [student.num_frames(len(f)) for f in features]
        for row, f in enumerate(features):
            assert student.encode(f.unsqueeze(0), lengths_B[row : row + 1]).item() == frames_B[row]
            count = int(frames_B[row])
            assert seen[-1].shape == (1, count, student.layer_channels(1))
            torch.testing.assert_close(seen[-1][0], seen[0][row, :count], atol=1e-4, rtol=1e-3)
    together = student.greedy(batch_BTF, lengths_B)
    assert together == [
        student.greedy(f.unsqueeze(0), lengths_B[row : row + 1])[0] for row, f in enumerate(features)
    ]
