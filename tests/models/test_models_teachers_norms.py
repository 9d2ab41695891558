"""Layer norms that give what matrix products read, in tensor operations and as a Triton kernel."""

import subprocess
import sys

import pytest
import torch
from models_teachers import make_waveforms
from torch import nn

from mvqkd.models.teachers import load_teacher, norms
from mvqkd.models.teachers.norms import ProductNorm, compiled_norm, norm_in_tensors

_COMPARE = """
import itertools
import torch
from mvqkd.models.teachers.norms import norm_in_tensors
from mvqkd.models.teachers.triton import norm_rows

torch.manual_seed(0)
for channels, affine, gelu, dtype, biased in itertools.product(
    (48, 512), (True, False), (True, False), (torch.float32, torch.bfloat16), (True, False)
):
    norm = torch.nn.LayerNorm(channels, elementwise_affine=affine).requires_grad_(False)
    for parameter in norm.parameters():
        parameter.normal_()
    x_FC = (3 * torch.randn(9, channels) + 1).to(dtype)
    given = {"bias_C": torch.randn(channels) if biased else None, "gelu": gelu, "dtype": dtype}
    found, expected = norm_rows(x_FC, norm, **given), norm_in_tensors(x_FC, norm, **given)
    # A number between two of bfloat16 may be rounded to either.
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-5)
print("equal")
"""


@pytest.mark.integration
def test_kernel_is_the_norm_in_tensors(monkeypatch):
    """Run by Triton's interpreter, which must be chosen before the kernel is defined."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ended = subprocess.run([sys.executable, "-c", _COMPARE], capture_output=True, text=True, timeout=300)
    assert ended.stdout == "equal\n", ended.stderr


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("channels", [512, 1280])
def test_kernel_compiles(dtype, channels):
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from mvqkd.models.teachers import triton as kernels

    constants = kernels.constants(channels, bias=True, affine=True, gelu=True)
    types = dict.fromkeys(("x_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(("bias_ptr", "weight_ptr", "shift_ptr"), "*fp32")
    types |= {"frames": "i32", "eps": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernels._norm_rows, types, constexprs=constants)
    kernel = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
    assert ".target sm_90" in kernel.asm["ptx"] and kernel.asm["cubin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_where_it_cannot_run_tensor_operations_do():
    with pytest.warns(RuntimeWarning, match=r"cannot be compiled for cuda:7 and runs in tensor operations"):
        assert compiled_norm(torch.device("cuda:7")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_on_cuda(dtype):
    norm_rows = compiled_norm(torch.device("cuda"))
    assert norm_rows is not None
    norm = nn.LayerNorm(1280, device="cuda").requires_grad_(False)
    x_FC = torch.randn(1001, 1280, device="cuda")
    for gelu in (True, False):
        found, expected = (
            each(x_FC, norm, bias_C=x_FC[0], gelu=gelu, dtype=dtype) for each in (norm_rows, norm_in_tensors)
        )
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-5)


def test_norm_for_products():
    norm = nn.LayerNorm(8).requires_grad_(False)
    norm.weight.normal_()
    x_BTC = torch.randn(2, 8, 3).transpose(1, 2)[:, :, :].repeat(1, 1, 3)[:, :, :8]
    found = ProductNorm(norm, torch.device("cpu"), torch.bfloat16)(x_BTC)
    assert torch.equal(found, norm(x_BTC).bfloat16())


@pytest.mark.parametrize(
    ("variant", "replaced"),
    [("hubert-large", 6), ("wavlm-large", 6), ("whisper", 6), ("hubert-base", 0), ("data2vec", 0)],
)
def test_layers_with_norms_first_get_them(folders, monkeypatch, variant, replaced):
    """Those that have them last add the norm's float32 result to their state."""
    path, waveforms = str(folders[variant]), make_waveforms(5_000, 719)
    exact = load_teacher(path).encode(waveforms)
    plain = load_teacher(path, dtype="bfloat16").encode(waveforms)
    monkeypatch.setattr(norms, "PRODUCT_NORMS", {"cpu"})
    teacher = load_teacher(path, dtype="bfloat16")
    assert sum(isinstance(module, ProductNorm) for module in teacher._model.modules()) == replaced
    assert not any(isinstance(module, ProductNorm) for module in load_teacher(path)._model.modules())
    for ours, theirs, expected in zip(teacher.encode(waveforms), plain, exact, strict=True):
        assert (ours - expected).square().sum() < 1.2 * (theirs - expected).square().sum()
