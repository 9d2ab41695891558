"""Teachers are loaded without the parts of transformers that none of them uses, and the rest of the process is none
the wiser."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from mvqkd.models.teachers import load_teacher
from mvqkd.models.teachers.lean import meta_norms

REPOSITORY = Path(__file__).resolve().parents[2]
LOAD = """
import sys
from mvqkd.models.teachers import load_teacher
import torch
teacher = load_teacher({path!r})
embeddings = teacher.encode([torch.linspace(-1, 1, 16000).sin()])[0]
heavy = ("torch._dynamo", "sympy", "torch.distributed.tensor", "triton")
print([name for name in heavy if name in sys.modules])
print(float(embeddings.double().abs().sum()))
"""
THEN = """
assert torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(1)).item() == 1
import torch._dynamo._trace_wrapped_higher_order_op as masks
from transformers import masking_utils
assert isinstance(masking_utils.TransformGetItemToIndex(), masks.TransformGetItemToIndex)
assert torch.distributed.is_available()
"""


def test_without_the_tracer_and_as_with_it(teacher_path: Path) -> None:
    code = LOAD.format(path=str(teacher_path)) + THEN
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    heavy, found = done.stdout.splitlines()
    assert heavy == "[]"
    import transformers.modeling_utils  # noqa: F401 -- so nothing is left out here

    whole = load_teacher(str(teacher_path)).encode([torch.linspace(-1, 1, 16000).sin()])[0]
    assert float(found) == pytest.approx(float(whole.double().abs().sum()), rel=1e-6)


@pytest.mark.parametrize("dim", [0, 2])
def test_norms_of_nothing_have_the_shape_of_norms(dim: int) -> None:
    def built(device: str) -> dict[str, torch.Size]:
        with torch.device(device):
            layer = weight_norm(torch.nn.Conv1d(4, 6, 3, groups=2), dim=dim)
        return {name: value.shape for name, value in layer.state_dict().items()}

    with meta_norms():
        shapes = built("meta")
    assert shapes == built("cpu")
    assert torch.norm_except_dim(torch.ones(2, 2), 1, 0).tolist() == [[2], [2]], "as before"
