"""Several layers in one pass, and batches whose embeddings nobody waits for."""

import copy
from contextlib import nullcontext

import pytest
import torch
from models_fakes import seeded
from models_teachers import LAYERS, VARIANTS, make_waveforms
from torch import Tensor

from mvqkd.models.quantizer import Coder
from mvqkd.models.quantizer.search import choose
from mvqkd.models.teachers import NonFiniteEmbeddingError, WaveformError, load_teacher


@pytest.mark.parametrize("variant", [*VARIANTS, "whisper"])
def test_each_layer_is_that_of_the_teacher_loaded_for_it(folders, variant):
    path = str(folders[variant])
    teacher = load_teacher(path, layers=(LAYERS, 1))
    waveforms = make_waveforms(5_000, 16_000, 719)
    found = teacher.encode_layers(waveforms, (LAYERS, 1, LAYERS))
    assert len(found) == 3
    for layer, embeddings in zip((LAYERS, 1, LAYERS), found, strict=True):
        alone = load_teacher(path, layer=layer)
        assert teacher.info_at(layer) == alone.info
        for ours, expected in zip(embeddings, alone.encode(waveforms), strict=True):
            assert torch.equal(ours, expected)
    assert teacher.info == teacher.info_at(LAYERS)
    for ours, expected in zip(teacher.encode(waveforms), found[0], strict=True):
        assert torch.equal(ours, expected)


def test_layers_that_cannot_be(folders):
    path = str(folders["hubert-base"])
    teacher = load_teacher(path, layers=[2, 1, 2])
    assert teacher.info.layer == 2
    for wrong in (3, 0):
        with pytest.raises(ValueError, match=rf"layer {wrong} is not among the layers \[1, 2\] that teacher"):
            teacher.encode_layers(make_waveforms(800), [1, wrong])
        with pytest.raises(ValueError, match=r"name it in load_teacher\(layers"):
            teacher.info_at(wrong)
    with pytest.raises(ValueError, match=r"no layer is given: name some of \[1, 2\]"):
        teacher.encode_layers([], [])
    assert teacher.encode_layers([], [2, 1]) == [[], []]
    with pytest.raises(ValueError, match="give layer or layers, not both"):
        load_teacher(path, layer=1, layers=[2])
    with pytest.raises(ValueError, match="layers is empty"):
        load_teacher(path, layers=[])
    with pytest.raises(ValueError, match="layer 4 is not among the layers 1 to 3"):
        load_teacher(path, layers=[1, 4])


@pytest.mark.parametrize("bad_layer", [0, 1])
def test_an_utterance_non_finite_in_any_layer_is_named(folders, monkeypatch, bad_layer):
    teacher = load_teacher(str(folders["hubert-base"]), layers=[1, 2])
    waveforms = make_waveforms(800, 1_600, 900)
    compute = teacher._states

    def overflow(*arguments) -> list[Tensor]:
        states = compute(*arguments)
        states[bad_layer][2, 0, 0] = torch.nan
        return states

    expected = teacher.encode_layers(waveforms, [1, 2])
    monkeypatch.setattr(teacher, "_states", overflow)
    with pytest.raises(NonFiniteEmbeddingError, match=r"waveforms \[2\]") as caught:
        teacher.encode_layers(waveforms, [1, 2])
    assert caught.value.indexes == (2,) and len(caught.value.layers) == 2
    assert caught.value.embeddings is caught.value.layers[0]
    for layer, kept in zip(expected, caught.value.layers, strict=True):
        assert torch.equal(kept[0], layer[0]) and torch.equal(kept[1], layer[1]) and kept[2] is None
    assert teacher.embed_batch(waveforms, [1, 2]).finite_B.tolist() == [True, True, False]


def test_a_batch_is_its_utterances_one_after_the_other(folders):
    teacher = load_teacher(str(folders["wavlm-large"]), layers=[1, 2])
    waveforms = make_waveforms(5_000, 719, 16_000)
    batch = teacher.embed_batch(waveforms, [2, 1])
    assert batch.layers == (2, 1) and batch.lengths == (15, 1, 49)
    assert batch.lengths_B.tolist() == [15, 1, 49] and batch.finite_B.tolist() == [True] * 3
    for frames_FD, embeddings in zip(batch.frames, teacher.encode_layers(waveforms, [2, 1]), strict=True):
        assert frames_FD.dtype == torch.float32 and not frames_FD.is_inference()
        assert torch.equal(frames_FD, torch.cat(embeddings))
    assert torch.equal(teacher.embed_batch(waveforms).frames[0], batch.frames[0])
    with pytest.raises(ValueError, match="no waveform to embed"):
        teacher.embed_batch([])
    with pytest.raises(WaveformError, match="waveform 1 holds NaN") as caught:
        teacher.embed_batch([*make_waveforms(800), torch.full((800,), torch.nan)])
    assert caught.value.index == 1


@pytest.mark.parametrize("variant", [*VARIANTS, "whisper"])
def test_nothing_between_audio_and_codes_asks_the_device(folders, monkeypatch, variant, convolutions):
    """Tensors without numbers raise when the host asks for one, as where it would wait for CUDA."""
    teacher = copy.deepcopy(load_teacher(str(folders[variant]), layers=[1, 2]))
    meta = torch.device("meta")
    teacher._device = meta
    teacher._model.to(meta)
    if variant == "whisper":
        teacher._log_mel.to(meta)
    elif teacher._position_bias is not None:
        teacher._position_bias._bucket_R = teacher._position_bias._bucket_R.to(meta)
    quantizer = seeded(32, 16, 4)
    coder = Coder(quantizer)
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())
    monkeypatch.setattr(choose, "compiled_search", lambda device: no_search)
    tables = coder._tables
    parts = {"offset_D": tables.offset_D, "bias_M": tables.bias_M, "cross_MM": tables.cross_MM}
    parts = {name: tensor.to(meta) for name, tensor in parts.items()}
    coder._tables = type(tables)(
        num_codebooks=4, linear_DM=tables.linear_DM.to(meta), largest=tables.largest, **parts
    )
    for name in ("_mean_D", "_centers_MD", "_first_N"):
        setattr(coder, name, getattr(coder, name).to(meta))
    waveforms = make_waveforms(5_000, 719, 16_000)
    batch = teacher.embed_batch(waveforms, [1, 2])
    assert batch.frames[0].device == meta and batch.finite_B.shape == (3,)
    for frames_FD in batch.frames:
        codes_FN, rrl_B = coder(frames_FD, batch.lengths_B)
        assert codes_FN.shape == (sum(batch.lengths), 4) and codes_FN.dtype == torch.uint8
        assert rrl_B.shape == (3,)
    with pytest.raises(RuntimeError):
        bool(batch.finite_B.all())


def no_search(cost_BM, cross_MM, num_codebooks, effort, start_BN):
    return torch.empty(len(cost_BM), num_codebooks, dtype=torch.int64, device=cost_BM.device)


@pytest.mark.integration
def test_compiled_layers_are_the_layers(folders):
    """One graph for all layers and shapes."""
    path = str(folders["hubert-large"])
    plain, compiled = (load_teacher(path, layers=[1, 2], compile=each) for each in (False, True))
    assert plain.info == compiled.info
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for lengths in ((5_000, 719), (5_000, 16_000, 719), (9_000, 4_000, 8_000, 800)):
        waveforms = make_waveforms(*lengths)
        every = (teacher.encode_layers(waveforms, [1, 2]) for teacher in (plain, compiled))
        for expected, found in zip(*([*first, *last] for first, last in every), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
