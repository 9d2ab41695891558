"""Training and fitting: schedule, convergence, exact resume."""

import hashlib

import pytest
import torch

from mvqkd.models.quantizer import FitConfig, Quantizer, QuantizerTrainer, fit_quantizer, rrl

DIM = 20


def frames(count, seed=0):
    """Clusters far from the origin, of a scale far from one; an RRL of 0.083 is left within them."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(12, DIM, generator=torch.Generator().manual_seed(99))
    rows = torch.randint(12, (count,), generator=generator)
    return 40 * (corners[rows] + 0.3 * torch.randn(count, DIM, generator=generator)) + 300


def config(**changes):
    settings = {
        "method": "paper",
        "num_codebooks": 3,
        "codebook_size": 16,
        "batch_size": 64,
        "phase_one_steps": 12,
        "phase_two_steps": 12,
        "valid_every": 8,
        "state_every": 5,
    }
    return FitConfig(**{**settings, **changes})


def weights(quantizer):
    return {name: t.clone() for name, t in quantizer.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_schedule_is_the_peers():
    multi_quantization = pytest.importorskip("multi_quantization")
    peer = multi_quantization.QuantizerTrainer(DIM, 1, torch.device("cpu"), 4, 8, lr=0.01)
    ours = QuantizerTrainer(DIM, 1, torch.device("cpu"), 4, 8, lr=0.01, seed=0)
    x = torch.randn(8, DIM)
    while not peer.done():
        assert not ours.done()
        assert ours.learning_rate == pytest.approx(peer.optim.param_groups[0]["lr"])
        assert ours.quantizer.codebook_size == peer.quantizer.codebook_size
        peer.step(x)
        ours.step(x)
    assert ours.done()
    quantizer = ours.get_quantizer()
    assert (quantizer.num_codebooks, quantizer.codebook_size) == (1, 256)


def test_one_step_is_the_peers(monkeypatch):
    """Same weights and batch, with search switched off on both sides: same weights after the step."""
    multi_quantization = pytest.importorskip("multi_quantization")
    peer = multi_quantization.QuantizerTrainer(DIM, 2, torch.device("cpu"), 4, 4)
    ours = QuantizerTrainer(DIM, 2, "cpu", 4, 4, seed=0)
    ours.quantizer.load_state_dict(peer.quantizer.state_dict())
    for quantizer in (peer.quantizer, ours.quantizer):
        full = quantizer.compute_loss
        monkeypatch.setattr(quantizer, "compute_loss", lambda x, _passes, full=full: full(x, 0))
    x = torch.randn(50, DIM)
    peer.step(x)
    ours.step(x)
    for name, parameter in peer.quantizer.named_parameters():
        torch.testing.assert_close(
            dict(ours.quantizer.named_parameters())[name], parameter, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_resumed_training_is_the_undisturbed_bit_for_bit(stop):
    x = torch.randn(12, 40, DIM)

    def run(trainer, until):
        while trainer.cur_iter < until:
            trainer.step(x[trainer.cur_iter])
        return trainer

    whole = run(QuantizerTrainer(DIM, 3, "cpu", 5, 6, seed=4), 12)
    state = run(QuantizerTrainer(DIM, 3, "cpu", 5, 6, seed=4), stop).state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    resumed = QuantizerTrainer(DIM, 3, "cpu", 5, 6, seed=77)
    resumed.load_state_dict(state)
    assert equal(weights(run(resumed, 12).get_quantizer()), weights(whole.get_quantizer()))


def test_seed_fixes_training_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = QuantizerTrainer(DIM, 2, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert equal(weights(first.quantizer), weights(QuantizerTrainer(DIM, 2, seed=1).quantizer))
    unseeded = [QuantizerTrainer(DIM, 2).quantizer.get_id() for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_trainer_refuses_misuse():
    with pytest.raises(ValueError, match="codebook_size=32"):
        QuantizerTrainer(DIM, 2, codebook_size=32)
    with pytest.raises(ValueError, match="phase_one_iters=0"):
        QuantizerTrainer(DIM, 2, phase_one_iters=0)
    trainer = QuantizerTrainer(DIM, 2, phase_one_iters=4, phase_two_iters=4)
    with pytest.raises(ValueError, match="ends in 7 channels"):
        trainer.step(torch.randn(3, 7))
    with pytest.raises(ValueError, match="only 0 of 9 steps"):
        trainer.get_quantizer()
    with pytest.raises(ValueError, match="another schedule"):
        QuantizerTrainer(DIM, 2, phase_one_iters=5).load_state_dict(trainer.state_dict())
    broken = trainer.state_dict()
    del broken["quantizer.centers"]
    with pytest.raises(ValueError, match="incomplete or damaged"):
        trainer.load_state_dict(broken)


def test_fit_converges_and_reports():
    seen = []
    result = fit_quantizer(
        frames(600),
        valid=frames(200, seed=1),
        config=config(phase_one_steps=80, phase_two_steps=80, valid_every=40, lr=0.02),
        progress=seen.append,
    )
    assert result.valid_rrl < 0.09
    x = frames(300, seed=2)
    assert rrl(x, result.quantizer.decode(result.quantizer.encode(x)).detach()) < 0.09
    assert result.steps == seen[-1].step == seen[-1].steps == 161
    assert [p.step for p in result.history] == [40, 80, 120, 160, 161]
    assert result.history[0].valid_rrl > result.history[-1].valid_rrl == pytest.approx(result.valid_rrl)
    assert [p.step for p in seen] == [*range(10, 161, 10), 161]
    assert [p.phase for p in seen[:9]] == [1] * 8 + [2]
    assert len(result.usage_entropy_bits) == 3 and all(1 < bits <= 4 for bits in result.usage_entropy_bits)
    assert torch.tensor(result.codebook_correlations).shape == (3, 3)
    assert result.seconds > 0


def test_fit_is_reproducible_and_names_its_result_by_its_weights():
    data, valid = frames(300), frames(50, seed=1)
    first, again = (fit_quantizer(data, valid=valid, config=config()).quantizer for _ in range(2))
    assert equal(weights(first), weights(again))
    other = fit_quantizer(data, valid=valid, config=config(seed=1)).quantizer
    assert other.get_id() != first.get_id()
    digest = hashlib.sha256()
    for name, parameter in sorted(first.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    assert first.get_id() == digest.hexdigest()[:8]


def test_resumed_fit_is_the_undisturbed_bit_for_bit():
    data, valid = frames(300).half(), frames(50, seed=1)
    states = []
    whole = fit_quantizer(data, valid=valid, config=config(), on_state=states.append)
    assert len(states) == 4
    for state in states:
        resumed = fit_quantizer(data, valid=valid, config=config(), resume_state=state)
        assert equal(weights(resumed.quantizer), weights(whole.quantizer))
        assert [(p.step, p.phase, p.valid_rrl) for p in resumed.history] == [
            (p.step, p.phase, p.valid_rrl) for p in whole.history
        ]
        assert resumed.seconds > float(state["history"][-1, -1])
    with pytest.raises(ValueError, match="other data"):
        fit_quantizer(data[1:], valid=valid, config=config(), resume_state=states[0])
    with pytest.raises(ValueError, match="other settings"):
        fit_quantizer(data, valid=valid, config=config(batch_size=32), resume_state=states[0])
    with pytest.raises(ValueError, match="other settings"):
        fit_quantizer(data, valid=valid, config=config(seed=3), resume_state=states[0])
    with pytest.raises(ValueError, match="other settings"):
        fit_quantizer(data, valid=valid, config=config(), resume_state={})


def test_fit_is_resumed_on_frames_that_were_rounded_otherwise():
    """Other threads and devices sum in another order, so mean and scale are those of the state."""
    data, valid = frames(300), frames(50, seed=1)
    states = []
    whole = fit_quantizer(data, valid=valid, config=config(), on_state=states.append)
    other = data * (1 + 1e-6)
    assert not torch.equal(other.mean(dim=0), data.mean(dim=0))
    resumed = fit_quantizer(other, valid=valid, config=config(), resume_state=states[-1])
    assert resumed.valid_rrl == pytest.approx(whole.valid_rrl, rel=1e-2)
    assert resumed.steps == whole.steps
    # The last state is five steps from the end: the same shift and scale are folded back in.
    mean = whole.quantizer.get_data_mean()
    torch.testing.assert_close(resumed.quantizer.get_data_mean(), mean, rtol=1e-3, atol=1e-2)
    incomplete = {name: t for name, t in states[0].items() if name != "mean"}
    with pytest.raises(ValueError, match="other settings"):
        fit_quantizer(data, valid=valid, config=config(), resume_state=incomplete)


def test_validation_frames_are_encoded_in_blocks(monkeypatch):
    data, valid = frames(300), frames(100, seed=1)
    whole = fit_quantizer(data, valid=valid, config=config())
    sizes = []
    real = Quantizer.encode
    monkeypatch.setattr(
        Quantizer, "encode", lambda self, x, **given: sizes.append(len(x)) or real(self, x, **given)
    )
    monkeypatch.setattr("mvqkd.models.quantizer.fit.ROWS_PER_BLOCK", 32)
    result = fit_quantizer(data, valid=valid, config=config())
    assert set(sizes) == {32, 4} and equal(weights(result.quantizer), weights(whole.quantizer))
    assert result.valid_rrl == pytest.approx(whole.valid_rrl, rel=1e-12)
    assert result.usage_entropy_bits == whole.usage_entropy_bits


def test_fewer_frames_than_a_batch_will_do():
    result = fit_quantizer(frames(40), valid=frames(10, seed=1), config=config(batch_size=512))
    assert result.valid_rrl < 1


def test_fit_refuses_bad_frames():
    good = frames(50)
    bad = good.clone()
    bad[7, 3] = float("nan")
    with pytest.raises(ValueError, match=r"data has NaN or infinity in 1 frames \(rows \[7\]\)"):
        fit_quantizer(bad, valid=good, config=config())
    with pytest.raises(ValueError, match="valid has NaN"):
        fit_quantizer(good, valid=bad, config=config())
    with pytest.raises(ValueError, match=r"give floats \(frames, dim\)"):
        fit_quantizer(good[:0], valid=good, config=config())
    with pytest.raises(ValueError, match="valid has 19 channels, data 20"):
        fit_quantizer(good, valid=good[:, 1:], config=config())
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_quantizer(torch.ones(50, DIM), valid=good, config=config())


@pytest.mark.parametrize(
    "change",
    [{"method": "fast"}, {"codebook_size": 100}, {"num_codebooks": 0}, {"batch_size": 0}, {"lr": 0.0}],
)
def test_config_refuses_impossible_values(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        config(**change)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fit_runs_on_cuda():
    result = fit_quantizer(frames(300), valid=frames(50, seed=1), config=config(), device="cuda")
    assert result.quantizer.centers.is_cuda and result.valid_rrl < 1
