"""The search as a Triton kernel: it compiles for GPUs that are not here, and is the search in tensor operations."""

import subprocess
import sys

import pytest
import torch
from models_fakes import seeded

from mvqkd.models.quantizer.search.choose import compiled_search
from mvqkd.models.quantizer.search.effort import Effort
from mvqkd.models.quantizer.search.in_tensors import search_in_step
from mvqkd.models.quantizer.search.tables import SearchTables

pytest.importorskip("triton")

_COMPARE = """
import torch
from mvqkd.models.quantizer.search.effort import Effort
from mvqkd.models.quantizer.search.in_tensors import search_in_step
from mvqkd.models.quantizer.search.triton import search

generator = torch.Generator().manual_seed(1)
for size, num_codebooks in ((256, 1), (16, 5), (64, 8)):
    centers = torch.randn(num_codebooks * size, 8, generator=generator)
    cost = torch.randn(3, num_codebooks * size, generator=generator)
    start = torch.randint(size, (3, num_codebooks), generator=generator)
    for given in (None, start):
        effort = Effort.of_passes(2, num_codebooks)
        arguments = (centers @ centers.t(), num_codebooks, effort, given)
        found, expected = search(cost.clone(), *arguments), search_in_step(cost.clone(), *arguments)
        assert torch.equal(found, expected), (size, num_codebooks, given)
print("equal")
"""


@pytest.mark.integration
def test_kernel_is_the_search_in_tensors(monkeypatch):
    """Run by Triton's interpreter, which must be chosen before the kernel is defined."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ended = subprocess.run([sys.executable, "-c", _COMPARE], capture_output=True, text=True, timeout=300)
    assert ended.stdout == "equal\n", ended.stderr


@pytest.mark.parametrize("capability", [80, 90])
def test_kernel_compiles_for(capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from mvqkd.models.quantizer.search import triton as search_triton

    constants = search_triton.constants(2048, 8, False)
    types = {"cost_ptr": "*fp32", "cross_ptr": "*fp32", "start_ptr": "*i64", "codes_ptr": "*i64"}
    types |= dict.fromkeys(("moves", "patience", "tenure"), "i32") | {"tolerance_share": "fp32"}
    source = ASTSource(
        search_triton._search, types | dict.fromkeys(constants, "constexpr"), constexprs=constants
    )
    options = {"num_warps": search_triton.warps(2048)}
    kernel = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert f".target sm_{capability}" in kernel.asm["ptx"] and kernel.asm["cubin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_where_it_cannot_run_tensor_operations_do():
    with pytest.warns(RuntimeWarning, match=r"cannot be compiled for cuda:7 and runs in tensor operations"):
        assert compiled_search(torch.device("cuda:7")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("size", "num_codebooks"), [(256, 8), (16, 5), (256, 64)])
def test_kernel_on_cuda(size, num_codebooks):
    search = compiled_search(torch.device("cuda"))
    assert search is not None
    tables = SearchTables.build(seeded(64, size, num_codebooks).cuda().get_centers().detach())
    x = torch.randn(2000, 64, device="cuda")
    start = torch.randint(size, (2000, num_codebooks), device="cuda")
    for given in (None, start):
        effort = Effort.of_passes(5, num_codebooks)
        arguments = (tables.cross_MM, num_codebooks, effort, given)
        cost = tables.entry_costs(x)
        assert torch.equal(search(cost.clone(), *arguments), search_in_step(cost.clone(), *arguments))
