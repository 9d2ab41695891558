"""Encoding as a function of the frame, what is refused, ids, and the first codebooks alone."""

import copy

import pytest
import torch
from models_fakes import seeded

from mvqkd.models.quantizer import Quantizer
from mvqkd.models.quantizer.search.tables import SearchTables


@pytest.mark.parametrize(
    ("dim", "codebook_size", "num_codebooks"), [(64, 256, 8), (96, 256, 3), (64, 16, 17), (512, 16, 5)]
)
def test_codes_depend_on_the_frame_alone(dim, codebook_size, num_codebooks):
    quantizer = seeded(dim, codebook_size, num_codebooks)
    x = torch.randn(700, dim)
    codes = quantizer.encode(x)
    assert torch.equal(torch.cat([quantizer.encode(row) for row in x[:3].split(1)]), codes[:3])
    assert torch.equal(torch.cat([quantizer.encode(part) for part in x.split(101)]), codes)
    order = torch.randperm(700)
    assert torch.equal(quantizer.encode(x[order]), codes[order])
    assert torch.equal(quantizer.encode(x.view(7, 100, dim)), codes.view(7, 100, -1))
    copies = quantizer.encode(x[5].expand(300, dim))
    assert (copies == codes[5]).all()


def test_float32_agrees_with_float64_despite_a_large_common_offset():
    quantizer = seeded(64, 256, 4)
    offset = torch.randn(64) * 30
    with torch.no_grad():
        quantizer.centers += offset / 4
    x = torch.randn(500, 64) * 0.2 + offset
    exact = copy.deepcopy(quantizer).double()
    same = (quantizer.encode(x) == exact.encode(x)).all(dim=1)
    assert same.float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_encoded_in_float32(dtype):
    quantizer = seeded(64, 16, 4)
    x = torch.randn(40, 64).to(dtype)
    assert torch.equal(quantizer.encode(x), quantizer.encode(x.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(x), quantizer.encode(x.float()))


def test_products_are_not_rounded_to_tf32(monkeypatch):
    """Whatever the process allows, and it is put back afterwards."""
    matmul = torch.backends.cuda.matmul
    seen = []
    real = SearchTables.entry_costs
    monkeypatch.setattr(
        SearchTables,
        "entry_costs",
        lambda *given, **more: seen.append(matmul.fp32_precision) or real(*given, **more),
    )
    quantizer = seeded(16, 16, 2)
    allowed = matmul.fp32_precision
    try:
        for precision in ("tf32", "ieee", allowed):
            matmul.fp32_precision = precision
            quantizer.encode(torch.randn(4, 16))
            assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = allowed
    assert seen == ["ieee"] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_by_row(bad):
    quantizer = seeded(16, 16, 2)
    x = torch.randn(20, 16)
    x[3, 1] = x[17, 0] = bad
    with pytest.raises(ValueError, match=r"2 of 20 frames \(rows 3, 17\)"):
        quantizer.encode(x)


@pytest.mark.parametrize("num_codebooks", [1, 4])
@pytest.mark.parametrize("backend", ["auto", "tensors"])
def test_numbers_that_would_overflow_are_refused_by_row(num_codebooks, backend):
    """Finite, but their costs are not: the search would compare infinities and NaN."""
    quantizer = seeded(16, 16, num_codebooks)
    with torch.no_grad():
        quantizer.centers.mul_(100)
    x = torch.randn(20, 16)
    codes = quantizer.encode(x, backend=backend)
    x[3], x[7, 1] = 3e38, -2e37
    with pytest.raises(ValueError, match=r"in 2 of 20 frames \(rows \[3, 7\]\) are too large .* float32"):
        quantizer.encode(x, backend=backend)
    # Large numbers below that are encoded, to the nearest center of all directions.
    huge = torch.sign(torch.randn(20, 16)) * 1e30
    exact = copy.deepcopy(quantizer).double().encode(huge.double(), backend=backend)
    assert (quantizer.encode(huge, backend=backend) == exact).all(dim=1).float().mean() > 0.9
    assert torch.equal(quantizer.encode(x[:3], backend=backend), codes[:3])


def test_wrong_input_is_refused():
    quantizer = seeded(16, 16, 2)
    with pytest.raises(ValueError, match=r"takes floats \(\*, 16\)"):
        quantizer.encode(torch.randn(4, 15))
    with pytest.raises(ValueError, match="codes lie in -100"):
        quantizer.decode(torch.full((3, 2), -100))
    with pytest.raises(ValueError, match="codes have 5 columns"):
        quantizer.decode(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="as_bytes=False"):
        Quantizer(8, 512, 1).encode(torch.randn(1, 8))
    with pytest.raises(ValueError, match="power of two"):
        Quantizer(8, 100, 1)
    with pytest.raises(ValueError, match="at least 1"):
        Quantizer(8, 16, 0)


@pytest.mark.parametrize(
    ("codebook_size", "num_codebooks", "columns"), [(16, 4, 2), (4, 4, 1), (16, 3, 3), (256, 3, 3)]
)
def test_bytes_decode_to_the_same(codebook_size, num_codebooks, columns):
    quantizer = seeded(16, codebook_size, num_codebooks)
    x = torch.randn(2, 11, 16)
    packed = quantizer.encode(x)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 11, columns)
    torch.testing.assert_close(
        quantizer.decode(packed), quantizer.decode(quantizer.encode(x, as_bytes=False))
    )


def test_no_frames_have_no_codes():
    assert seeded(16, 16, 4).encode(torch.zeros(2, 0, 16), as_bytes=False).shape == (2, 0, 4)


def test_tables_follow_the_centers():
    quantizer = seeded(16, 16, 4)
    x = torch.randn(60, 16)
    quantizer.encode(x)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1, fused=True)
    quantizer.compute_loss(x, 1)[0].backward()
    optimizer.step()
    assert torch.equal(quantizer.encode(x), copy.deepcopy(quantizer).encode(x))
    quantizer.centers.data.mul_(-1)
    assert torch.equal(quantizer.encode(x), copy.deepcopy(quantizer).encode(x))


def test_id_follows_seed_and_weights():
    one, same, other = seeded(8, 16, 2), seeded(8, 16, 2), seeded(8, 16, 2, seed=1)
    assert one.get_id() == same.get_id() != other.get_id()
    assert one.set_id_from_weights() == same.set_id_from_weights() == one.get_id()
    with torch.no_grad():
        same.centers_scale += 0.1
    assert same.set_id_from_weights() != one.get_id()


def test_the_first_codebooks_alone():
    quantizer = seeded(12, 16, 4)
    codes = torch.randint(16, (20, 4))
    centers = quantizer.get_centers()
    expected = centers[0, codes[:, 0]] + centers[1, codes[:, 1]]
    part = quantizer.first(2)
    torch.testing.assert_close(part.decode(codes[:, :2]), expected)
    assert part.get_id() != quantizer.get_id() and not part.training
    ordered = Quantizer(12, 16, 4, prefix_weights=[1.0, 1.0, 0.0, 1.0]).eval()
    assert ordered.first(2).prefix_weights == (1.0, 1.0) and ordered.first(3).prefix_weights is None
    for wrong in (0, 5):
        with pytest.raises(ValueError, match="has 4 codebooks"):
            quantizer.first(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_codes_depend_on_the_frame_alone_on_cuda():
    quantizer = seeded(64, 256, 8).cuda()
    x = torch.randn(5000, 64, device="cuda")
    codes = quantizer.encode(x)
    assert torch.equal(torch.cat([quantizer.encode(part) for part in x.split(777)]), codes)
    on_cpu = copy.deepcopy(quantizer).cpu().encode(x.cpu())
    assert (on_cpu == codes.cpu()).all(dim=1).float().mean() > 0.99
