"""A student of one's own, in ten lines, goes through all that ours does."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from students_fakes import TinyStudent
from torch import nn

from mvqkd.models.distillation.heads import CodesHead, EmbeddingHead
from mvqkd.models.distillation.model import AttachedHead, DistillationModel
from mvqkd.models.students.base import Student, StudentFrames
from mvqkd.models.students.build import build_student
from mvqkd.models.students.kinds import OwnConfig


def test_what_it_says_of_itself() -> None:
    student = TinyStudent(4)
    assert student.frames == StudentFrames(
        sample_rate_hz=16_000, frame_rate_hz=100.0, frame_offset_s=0.0, min_samples=400
    )
    assert (student.num_layers, student.layer_channels(2), student.num_frames(31)) == (2, 80, 31)
    features_TF = student.features(torch.randn(400))
    assert features_TF.shape == (3, 80) and features_TF.dtype == torch.float32
    assert student.feature_rate_hz == 100
    assert not any("mel" in name for name in student.state_dict())
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"layer {number} is not one of the student's 2 layers"):
            student.layer(number)


def test_it_learns_units_codes_and_embeddings_together() -> None:
    torch.manual_seed(0)
    student = TinyStudent(4)
    model = DistillationModel(
        student,
        {
            "codes": AttachedHead(layer=1, scale=0.1, head=CodesHead(80, 2, 8, joint=True)),
            "embeddings": AttachedHead(layer=2, scale=0.05, head=EmbeddingHead(80, 3, "l2")),
        },
    )
    features_BTF, lengths_B = torch.randn(2, 20, 80), torch.tensor([20, 14])
    units_BU, unit_lengths_B = torch.tensor([[1, 2, 3], [3, 1, 0]]), torch.tensor([3, 2])
    codes_BTK, embeddings_BTD = torch.randint(8, (2, 20, 2)), torch.randn(2, 20, 3)
    codes_BTK[1, 14:], embeddings_BTD[1, 14:] = -100, float("nan")
    targets = {"codes": codes_BTK, "embeddings": embeddings_BTD}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(60):
        losses = model(features_BTF, lengths_B, units_BU, unit_lengths_B, targets)
        optimizer.zero_grad()
        losses.total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        history.append([float(losses.parts["ctc"]), *(float(h.loss) for h in losses.heads.values())])
    assert (losses.num_frames, losses.heads["codes"].count, losses.heads["embeddings"].count) == (34, 68, 102)
    assert all(last < 0.3 * first for first, last in zip(history[0], history[-1], strict=True))
    assert student.greedy(features_BTF, lengths_B) == [[1, 2, 3], [3, 1]]


def test_what_is_missing_is_said_when_it_is_built() -> None:
    class Nothing(Student):
        layers = nn.ModuleList()

    with pytest.raises(TypeError, match=r"abstract.*greedy.*loss"):
        Nothing()


def test_the_one_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "students.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class " in block)
    module = ModuleType("on_the_page")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "on_the_page", module)
    student = build_student(OwnConfig(import_path="on_the_page:Recurrent", options={"width": 24}), 5)
    features_BTF, lengths_B = torch.randn(2, 20, 80), torch.tensor([20, 14])
    head = AttachedHead(layer=1, scale=0.1, head=CodesHead(24, 2, 8))
    model = DistillationModel(student, {"codes": head})
    units_BU, unit_lengths_B = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    losses = model(features_BTF, lengths_B, units_BU, unit_lengths_B, {"codes": torch.randint(8, (2, 20, 2))})
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert student.encode(features_BTF, lengths_B).tolist() == [20, 14]
    assert len(student.greedy(features_BTF, lengths_B)) == 2
