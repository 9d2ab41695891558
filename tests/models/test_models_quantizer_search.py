"""The search over codes: its costs written down directly, its two implementations, and how near it comes."""

import pytest
import torch
from models_fakes import seeded, squared_error

from mvqkd.models.quantizer import Quantizer
from mvqkd.models.quantizer.search.effort import Effort
from mvqkd.models.quantizer.search.tables import SearchTables


@pytest.mark.parametrize(("codebook_size", "num_codebooks"), [(256, 1), (16, 2), (4, 3), (64, 8)])
def test_more_passes_never_raise_a_frames_error(codebook_size, num_codebooks):
    quantizer = seeded(64, codebook_size, num_codebooks)
    x = torch.randn(200, 64)
    guess = squared_error(quantizer, x, quantizer.encode(x, 0))
    previous = squared_error(quantizer, x, quantizer.encode(x, 1))
    assert previous.sum() <= guess.sum()
    for passes in (2, 3, 5):
        error = squared_error(quantizer, x, quantizer.encode(x, passes))
        assert (error <= previous + 1e-4).all()
        previous = error


def test_search_comes_near_the_optimum_of_small_problems():
    """Four codebooks of 16: all 65,536 codes can be tried."""
    quantizer = seeded(64, 16, 4)
    x = torch.randn(100, 64) * 0.3
    every = torch.cartesian_prod(*[torch.arange(16)] * 4)
    best = torch.cdist(x, quantizer.decode(every).detach()).square().min(dim=1).values
    guess = squared_error(quantizer, x, quantizer.encode(x, 0))
    error = squared_error(quantizer, x, quantizer.encode(x))
    assert (error - best).mean() < 0.02 * (guess - best).mean()
    assert (error <= best * 1.001 + 1e-5).float().mean() > 0.9


def direct_cost(quantizer, x, codes):
    """What the search minimises, written down as the docstrings say it."""
    weights = quantizer.prefix_weights or [0.0] * (quantizer.num_codebooks - 1) + [1.0]
    chosen = quantizer.get_centers().detach()[torch.arange(quantizer.num_codebooks), codes.long()]
    errors = (x.unsqueeze(1) - chosen.cumsum(dim=1)).square().sum(dim=2)
    logits = quantizer._logits(x).detach()
    logprob = logits.log_softmax(dim=2).gather(2, codes.long().unsqueeze(2)).sum(dim=(1, 2))
    return errors @ torch.tensor(weights) - quantizer.logprob_weight * logprob


@pytest.mark.parametrize("logprob_weight", [0.0, 0.7])
@pytest.mark.parametrize("prefix_weights", [None, [0.5, 0.0, 0.3, 1.0]])
def test_tables_hold_the_costs(logprob_weight, prefix_weights):
    torch.manual_seed(1)
    quantizer = Quantizer(6, 4, 4, logprob_weight=logprob_weight, prefix_weights=prefix_weights).eval()
    with torch.no_grad():
        quantizer.centers += torch.randn(4, 1, 6)  # codebooks with means
        quantizer.logits_scale.fill_(0.05)
    x = torch.randn(50, 6) + 2
    tables = quantizer.search_tables()
    every = torch.cartesian_prod(*[torch.arange(4)] * 4)
    rows = every + torch.arange(4) * 4
    pairs = sum(tables.cross_MM[rows[:, n], rows[:, m]] for n in range(4) for m in range(n))
    found = (tables.entry_costs(x)[:, rows].sum(dim=2) + pairs).detach()
    direct = torch.stack([direct_cost(quantizer, x, codes.expand(50, 4)) for codes in every], dim=1)
    # Alike up to what is the same for all codes of a frame.
    torch.testing.assert_close(found - found[:, :1], direct - direct[:, :1], rtol=1e-4, atol=1e-3)
    best = direct.min(dim=1).values
    reached = direct_cost(quantizer, x, quantizer.encode(x, as_bytes=False))
    assert ((reached - best) < 1e-3).float().mean() > 0.95


@pytest.mark.parametrize(("codebook_size", "num_codebooks"), [(256, 1), (16, 2), (256, 5), (16, 8)])
@pytest.mark.parametrize("given", [False, True])
def test_compiled_search_is_the_search_in_tensors(codebook_size, num_codebooks, given):
    pytest.importorskip("numba")
    quantizer = seeded(32, codebook_size, num_codebooks)
    tables = SearchTables.build(quantizer.get_centers().detach())
    x = torch.randn(300, 32)
    start = torch.randint(codebook_size, (300, num_codebooks)) if given else None
    for passes in (1, 2, 5):
        effort = Effort.of_passes(passes, num_codebooks)
        compiled = tables.search(tables.entry_costs(x), effort, start)
        in_step = tables.search(tables.entry_costs(x), effort, start, backend="tensors")
        assert (compiled == in_step).all(dim=1).float().mean() > 0.99
        if given:
            error = squared_error(quantizer, x, compiled)
            assert (error <= squared_error(quantizer, x, start) + 1e-4).all()


@pytest.mark.parametrize("dim", [48, 512])
def test_codes_by_products_of_bytes_are_hardly_worse(dim):
    quantizer = seeded(dim, 16, 4)
    with torch.no_grad():
        # A few channels are a thousand times as large as others, as in embeddings.
        quantizer.centers *= torch.logspace(0, -3, dim)
    x = quantizer.decode(torch.randint(16, (400, 4))).detach() + 0.02 * torch.randn(400, dim)
    exact, near = quantizer.encode(x), quantizer.encode(x, products="int8")
    error, near_error = (squared_error(quantizer, x, codes).sum() for codes in (exact, near))
    assert 0.98 * error < near_error < 1.02 * error
    assert torch.equal(quantizer.encode(x), exact), "tables of bytes are not used"
    with pytest.raises(ValueError, match="products='int4'; use float32 or int8"):
        quantizer.encode(x, products="int4")


def test_search_in_tensors():
    quantizer = seeded(32, 16, 4)
    x = torch.randn(100, 32)
    in_tensors = quantizer.encode(x, backend="tensors")
    assert (quantizer.encode(x) == in_tensors).all(dim=1).float().mean() > 0.98
    with pytest.raises(ValueError, match='backend=\'numba\'; use "auto" or "tensors"'):
        quantizer.encode(x, backend="numba")
