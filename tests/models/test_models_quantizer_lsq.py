"""Fitting by alternating least squares: its parts against direct computations, and what it promises."""

import dataclasses

import pytest
import torch

from mvqkd.models.quantizer import FitConfig, fit_quantizer, rrl
from mvqkd.models.quantizer.lsq import LsqFit

DIM = 20


def frames(count, seed=0, offset=300.0):
    """Sums of two independent clusterings and a little noise, far from the origin and from unit scale."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(2, 12, DIM, generator=torch.Generator().manual_seed(99))
    rows = torch.randint(12, (2, count), generator=generator)
    sums = corners[0, rows[0]] + 0.5 * corners[1, rows[1]]
    return 40 * (sums + 0.2 * torch.randn(count, DIM, generator=generator)) + offset


def config(**changes):
    settings = {
        "num_codebooks": 3,
        "codebook_size": 16,
        "round_frames": 512,
        "anneal_rounds": 12,
        "valid_every": 6,
        "state_every": 5,
    }
    return FitConfig(**{**settings, **changes})


def small_fit(x, **changes):
    settings = {
        "num_codebooks": 3,
        "codebook_size": 4,
        "num_frames": len(x),
        "round_frames": len(x),
        "anneal_rounds": 5,
        "tolerance": 0.001,
        "predictability": 0.0,
        "ordered": False,
        "seed": 0,
    }
    return LsqFit(x, **{**settings, **changes})


def normalized(x):
    x = x - x.mean(dim=0)
    return x / x.square().mean().sqrt()


def weights(quantizer):
    return {name: t.clone() for name, t in quantizer.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_fit_converges_and_reports():
    seen = []
    result = fit_quantizer(frames(3000), valid=frames(500, seed=1), config=config(), progress=seen.append)
    x = frames(500, seed=2)
    reached = rrl(x, result.quantizer.decode(result.quantizer.encode(x)).detach())
    # 0.031 of the variance is noise, of which 12 bits can take little.
    assert reached < 0.04 and result.valid_rrl < 0.04
    assert [p.step for p in seen] == list(range(1, result.steps + 1))
    assert 12 < result.steps < 120, "ends by itself, after the noise is gone and before the limit"
    assert [p.phase for p in seen] == [1] * 12 + [2] * (result.steps - 12)
    assert result.history[-1].valid_rrl == pytest.approx(result.valid_rrl)
    assert all(p.valid_rrl is not None for p in result.history) and seen[-1].steps == result.steps


def test_a_seed_fixes_the_fit_and_the_global_generator_is_left_alone():
    data, valid = frames(600), frames(50, seed=1)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = fit_quantizer(data, valid=valid, config=config()).quantizer
    assert torch.equal(torch.rand(1), expected)
    assert equal(weights(first), weights(fit_quantizer(data, valid=valid, config=config()).quantizer))
    other = fit_quantizer(data, valid=valid, config=config(seed=1)).quantizer
    assert other.get_id() != first.get_id()


@pytest.mark.parametrize("ordered", [False, True])
def test_resumed_fit_is_the_undisturbed_bit_for_bit(ordered):
    data, valid = frames(1200).half(), frames(50, seed=1)
    states, settings = [], config(ordered=ordered)
    whole = fit_quantizer(data, valid=valid, config=settings, on_state=states.append)
    assert len(states) >= 2
    for state in (states[0], states[-1]):
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        resumed = fit_quantizer(data, valid=valid, config=settings, resume_state=state)
        assert equal(weights(resumed.quantizer), weights(whole.quantizer))
        assert resumed.steps == whole.steps
        assert [dataclasses.replace(p, elapsed_s=0) for p in resumed.history] == [
            dataclasses.replace(p, elapsed_s=0) for p in whole.history
        ]
    damaged = {name: t for name, t in states[0].items() if name != "lsq.counts_MM"}
    with pytest.raises(ValueError, match="no fitting counts_MM"):
        fit_quantizer(data, valid=valid, config=settings, resume_state=damaged)
    with pytest.raises(ValueError, match="other settings"):
        fit_quantizer(data, valid=valid, config=config(round_frames=256), resume_state=states[0])


def test_centers_solve_the_least_squares_problem():
    x = normalized(torch.randn(400, 6))
    fit = small_fit(x, anneal_rounds=1)
    fit.step(x)
    fit.step(x)  # without noise from here on
    rows_BN = fit._search(x) + fit._first_N
    fit._count(x, rows_BN)
    fit._solve_centers()
    one_hot_BM = torch.zeros(400, 12).scatter_(1, rows_BN, 1.0)
    exact = torch.linalg.lstsq(one_hot_BM, x, driver="gelsd").solution
    best = (x - one_hot_BM @ exact).square().sum()
    assert (x - fit._centers_MD[rows_BN].sum(dim=1)).square().sum() == pytest.approx(float(best), rel=1e-3)


def test_rounds_of_a_part_of_the_frames_remember_the_others():
    data, valid = frames(4000), frames(300, seed=1)
    whole = fit_quantizer(data, valid=valid, config=config(round_frames=4000)).valid_rrl
    parts = fit_quantizer(data, valid=valid, config=config(round_frames=250, anneal_rounds=24)).valid_rrl
    assert parts < 1.1 * whole


def test_predictability_trades_error_for_cross_entropy():
    data, valid = frames(4000), frames(1000, seed=1)
    figures = []
    for predictability in (0.0, 0.02):
        quantizer = fit_quantizer(
            data, valid=valid, config=config(predictability=predictability, num_codebooks=4)
        ).quantizer
        with torch.no_grad():
            codes = quantizer.encode(valid, as_bytes=False)
            logits = quantizer._logits(valid)
            cross_entropy = torch.nn.functional.cross_entropy(logits.reshape(-1, 16), codes.reshape(-1))
            figures.append((rrl(valid, quantizer.decode(codes)), float(cross_entropy)))
    (rrl_without, nats_without), (rrl_with, nats_with) = figures
    assert nats_with < 0.7 * nats_without
    assert rrl_without <= rrl_with < 2 * rrl_without


def test_ordered_codebooks_are_codes_by_themselves():
    data, valid = frames(4000), frames(1000, seed=1)

    def errors(ordered):
        quantizer = fit_quantizer(
            data, valid=valid, config=config(ordered=ordered, num_codebooks=4, predictability=0.0)
        ).quantizer
        codes, centers = quantizer.encode(valid, as_bytes=False), quantizer.get_centers().detach()
        parts = centers[torch.arange(4), codes].cumsum(dim=1)
        return [rrl(valid, parts[:, k]) for k in range(4)]

    plain, ordered = errors(False), errors(True)
    alone = fit_quantizer(data, valid=valid, config=config(num_codebooks=1, predictability=0.0)).valid_rrl
    assert ordered[0] < plain[0] and ordered[0] < 1.1 * alone
    assert ordered[0] > ordered[1] > ordered[3] and ordered[3] < 1.25 * plain[3]


def test_unused_entries_begin_again():
    x = normalized(frames(400))
    fit = small_fit(x, codebook_size=8)
    fit.step(x)
    centers = fit._centers_MD.clone()
    counts = fit._counts_MM.diagonal().clone()
    most = int(counts[:8].argmax())
    dead = (most + 1) % 8
    counts[dead] = 0
    fit._revive(centers, counts)
    assert torch.equal(centers[dead], centers[most])
    kept = [i for i in range(24) if i != dead and counts[i] >= 0.5]
    assert torch.equal(centers[kept], fit._centers_MD[kept])


def test_a_time_limit_ends_the_fit():
    result = fit_quantizer(
        frames(2000), valid=frames(100, seed=1), config=config(anneal_rounds=100_000, max_seconds=1.0)
    )
    assert result.steps < 100_000 and result.valid_rrl < 0.2
    over_at_once = fit_quantizer(frames(500), valid=frames(100, seed=1), config=config(max_seconds=1e-9))
    assert over_at_once.steps == 1


def test_a_time_limit_that_is_not_reached_changes_nothing():
    data, valid = frames(2000), frames(100, seed=1)
    free = fit_quantizer(data, valid=valid, config=config())
    limited = fit_quantizer(data, valid=valid, config=config(max_seconds=1000.0))
    assert equal(weights(free.quantizer), weights(limited.quantizer))


@pytest.mark.parametrize("slowness", [0.5, 8.0])
def test_rounds_take_fewer_frames_where_the_time_limit_would_not_do_for_all_of_them(slowness):
    x = normalized(frames(4000))
    fit = small_fit(x, anneal_rounds=12)
    rounds = 12 + 4
    # A machine on which `slowness` times the time limit would do for all rounds of all frames.
    search, taken, used = fit._search, [], 0.3 * (slowness < 1)
    fit.note_time(used)
    fit._search = lambda x_BD: (taken.append(len(x_BD)), search(x_BD))[1]
    while not fit.done():
        fit.step(x)
        used += slowness / rounds * taken[-1] / len(x)
        fit.note_time(used)
    if slowness < 1:
        assert set(taken) == {len(x)}
    else:
        assert len(taken) >= rounds
        assert taken[0] == len(x) and max(taken[1:]) < len(x) / 4 and min(taken) >= 16 * 4


def test_few_frames_and_one_codebook_will_do():
    assert fit_quantizer(frames(10), valid=frames(5, seed=1), config=config()).valid_rrl < 2
    one = fit_quantizer(frames(800), valid=frames(100, seed=1), config=config(num_codebooks=1))
    assert one.valid_rrl < 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"round_frames": 0},
        {"anneal_rounds": 0},
        {"tolerance": 0.0},
        {"max_seconds": -1.0},
        {"predictability": -0.1},
        {"method": "paper", "ordered": True},
    ],
)
def test_config_refuses_impossible_values(change):
    with pytest.raises(ValueError, match="|".join(change)):
        config(**change)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fit_runs_on_cuda():
    result = fit_quantizer(frames(3000), valid=frames(500, seed=1), config=config(), device="cuda")
    assert result.quantizer.centers.is_cuda and result.valid_rrl < 0.04
