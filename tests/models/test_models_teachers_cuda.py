"""Teachers and quantizer on CUDA: the CPU's numbers, and no wait of the host between audio and codes."""

import pytest
import torch
from models_fakes import seeded
from models_teachers import LAYERS, VARIANTS, make_waveforms

from mvqkd.models.quantizer import Coder, rrl
from mvqkd.models.quantizer.search.choose import compiled_search
from mvqkd.models.teachers import NonFiniteEmbeddingError, WaveformError, load_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("variant", [*VARIANTS, "whisper"])
def test_cuda_agrees_with_cpu(folders, variant):
    waveforms = make_waveforms(5_000, 400, 16_000)
    layers = (1, LAYERS)
    path = str(folders[variant])
    cpu, cuda = (load_teacher(path, device=device, layers=layers) for device in ("cpu", "cuda"))
    assert all(cpu.info_at(layer) == cuda.info_at(layer) for layer in layers)
    half = load_teacher(path, device="cuda", dtype="float16", layers=layers)
    every = (teacher.encode_layers(waveforms, layers) for teacher in (cpu, cuda, half))
    for expected, found, rough in zip(*([*first, *last] for first, last in every), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
        assert (rough.cpu() - expected).square().sum() / expected.square().sum() < 0.01
    for ours, again in zip(cuda.encode(waveforms), cuda.encode(waveforms), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", [*VARIANTS, "whisper"])
def test_the_host_does_not_wait(folders, variant, dtype):
    teacher = load_teacher(str(folders[variant]), device="cuda", dtype=dtype, layers=[1, 2])
    coder, fast = (Coder(seeded(32, 16, 4).cuda(), search=search) for search in ("full", "fast"))
    waveforms = make_waveforms(5_000, 719, 16_000)

    def run():
        batch = teacher.embed_batch(waveforms, [1, 2])
        fast(batch.frames[0], batch.lengths_B)
        return batch, [coder(frames_FD, batch.lengths_B) for frames_FD in batch.frames]

    run()  # what is compiled or allocated at first may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch, coded = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.finite_B.tolist() == [True] * 3
    for frames_FD, (codes_FN, rrl_B) in zip(batch.frames, coded, strict=True):
        expected = coder.quantizer.encode(frames_FD, as_bytes=False)
        assert torch.equal(codes_FN.long(), expected)
        x_hat = coder.quantizer.decode(expected).detach()
        parts = zip(frames_FD.split(batch.lengths), x_hat.split(batch.lengths), strict=True)
        each = [rrl(*pair, mean=coder.quantizer.get_data_mean()) for pair in parts]
        assert rrl_B.tolist() == pytest.approx(each, rel=1e-6)


def test_waveforms_that_are_there_already(folders):
    teacher = load_teacher(str(folders["hubert-large"]), device="cuda")
    waveforms = make_waveforms(5_000, 719)
    expected = teacher.encode(waveforms)
    for ours, theirs in zip(teacher.encode([w.cuda() for w in waveforms]), expected, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(WaveformError, match="waveform 1 holds NaN") as caught:
        teacher.encode([waveforms[0].cuda(), torch.full((800,), torch.nan, device="cuda")])
    assert caught.value.index == 1


def test_overflow_in_float16_is_named(folders):
    teacher = load_teacher(str(folders["hubert-large"]), device="cuda", dtype="float16", normalize=False)
    quiet, loud = make_waveforms(5_000, 5_000)
    with pytest.raises(NonFiniteEmbeddingError, match="load the teacher with dtype float32") as caught:
        teacher.encode([quiet, loud * 1e30])
    assert caught.value.indexes == (1,)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("num_codebooks", [4, 5])
def test_coder_on_what_cannot_be_coded(bad, num_codebooks):
    assert compiled_search(torch.device("cuda")) is not None
    quantizer = seeded(12, 16, num_codebooks).cuda()
    coder, lengths_B = Coder(quantizer), torch.tensor([3, 20, 7], device="cuda")
    x_FD = torch.randn(30, 12, device="cuda")
    codes_FN, rrl_B = coder(x_FD, lengths_B)
    spoilt_FD = x_FD.clone()
    spoilt_FD[10, 4] = bad
    bad_codes_FN, bad_rrl_B = coder(spoilt_FD, lengths_B)
    others_F = torch.arange(30) != 10
    assert torch.equal(bad_codes_FN.cpu()[others_F], codes_FN.cpu()[others_F])
    assert bad_rrl_B.isnan().tolist() == [False, True, False]
    assert torch.equal(bad_rrl_B[[0, 2]], rrl_B[[0, 2]])
