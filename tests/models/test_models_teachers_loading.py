"""Loading teachers: checkpoints with heads, in half precision, in shards, damaged, missing; fingerprints."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks import whisper_window
from mvqkd.models.teachers import TeacherLoadError, checkpoint, load_teacher

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
}


def wave() -> torch.Tensor:
    return torch.randn(4_000, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def hubert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "hubert"
    transformers.HubertModel(transformers.HubertConfig(**TINY)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def rewrite(folder: Path, change) -> Path:
    """A copy of a checkpoint with changed weights."""
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    save_file(change(load_file(copy / "model.safetensors")), copy / "model.safetensors")
    return copy


def change_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("prefix", "old_names"),
    [("hubert.", False), ("", True), ("hubert.", True)],
)
def test_head_prefix_and_old_weight_norm_names(hubert, prefix, old_names):
    def change(weights):
        if old_names:
            weights = {checkpoint._canonical_name(name): tensor for name, tensor in weights.items()}
        return {prefix + name: tensor for name, tensor in weights.items()} | {"lm_head.bias": torch.zeros(8)}

    ours, other = load_teacher(str(hubert)), load_teacher(str(rewrite(hubert, change)))
    assert torch.equal(ours.encode([wave()])[0], other.encode([wave()])[0])
    assert ours.info.fingerprint == other.info.fingerprint


def test_ctc_and_whisper_generation_checkpoints(tmp_path):
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**TINY))
    model.save_pretrained(tmp_path / "ctc")
    assert load_teacher(str(tmp_path / "ctc"), normalize=True).encode([wave()])[0].shape == (12, 16)
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "whisper")
    teacher = load_teacher(str(tmp_path / "whisper"))
    assert not any("decoder" in name for name, _ in teacher._model.named_parameters())
    assert teacher.encode([wave()])[0].shape == (13, 16)
    with pytest.raises(ValueError, match="Whisper normalizes its spectrogram"):
        load_teacher(str(tmp_path / "whisper"), normalize=True)
    exact = load_teacher(str(tmp_path / "whisper"), whisper_window="exact")
    assert exact.info.fingerprint != teacher.info.fingerprint


def test_later_layers_are_neither_needed_nor_fingerprinted(hubert):
    def without_last_layer(weights):
        return {name: tensor for name, tensor in weights.items() if ".layers.2." not in name}

    copy = rewrite(hubert, without_last_layer)
    assert (
        load_teacher(str(copy), layer=2).info.fingerprint
        == load_teacher(str(hubert), layer=2).info.fingerprint
    )
    with pytest.raises(TeacherLoadError, match=r"lack 16 tensors, the first encoder.layers.2"):
        load_teacher(str(copy), layer=3)


def test_sharded_and_half_precision_weights(hubert, tmp_path):
    half = transformers.HubertModel.from_pretrained(hubert).half()
    half.save_pretrained(tmp_path / "half", max_shard_size="8KB")
    half.float().save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 1
    sharded, whole = (load_teacher(str(tmp_path / name), normalize=True) for name in ("half", "whole"))
    assert sharded.info.fingerprint == whole.info.fingerprint
    assert torch.equal(sharded.encode([wave()])[0], whole.encode([wave()])[0])
    next((tmp_path / "half").glob("model-*.safetensors")).unlink()
    with pytest.raises(TeacherLoadError, match="lacks the weight files"):
        load_teacher(str(tmp_path / "half"), normalize=True)


def test_fingerprint_tells_layer_dtype_weights_and_settings_apart(hubert):
    def nudge(weights):
        weights["feature_projection.projection.bias"][0] += 1e-6
        return weights

    base = load_teacher(str(hubert)).info.fingerprint
    assert len(base) == 16 and int(base, 16) >= 0
    assert base == load_teacher(str(hubert)).info.fingerprint
    others = {
        load_teacher(str(hubert), layer=2).info.fingerprint,
        load_teacher(str(hubert), dtype="bfloat16").info.fingerprint,
        load_teacher(str(hubert), normalize=False).info.fingerprint,
        load_teacher(str(rewrite(hubert, nudge))).info.fingerprint,
    }
    change_config(hubert, layer_norm_eps=1e-3)
    others.add(load_teacher(str(hubert)).info.fingerprint)
    assert len(others | {base}) == 6


def test_normalization_from_processor_config(hubert):
    (hubert / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherLoadError, match=r"no preprocessor_config.json.*set normalize"):
        load_teacher(str(hubert))
    settings = {"feature_extractor": {"do_normalize": False, "sampling_rate": 16_000}}
    (hubert / "processor_config.json").write_text(json.dumps(settings))
    assert (
        load_teacher(str(hubert)).info.fingerprint
        == load_teacher(str(hubert), normalize=False).info.fingerprint
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 0}, "layer 0 is not among the layers 1 to 3"),
        ({"layer": 4}, "layer 4 is not among the layers 1 to 3"),
        ({"dtype": "float16"}, "not for the CPU"),
        ({"dtype": "int8"}, "choose one of float32, float16, bfloat16"),
        ({"whisper_window": "long"}, "choose short or exact"),
    ],
)
def test_impossible_arguments(hubert, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_teacher(str(hubert), **arguments)


def test_pickled_weights_are_refused(hubert):
    (hubert / "model.safetensors").unlink()
    (hubert / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(TeacherLoadError, match=r"pytorch_model.bin\) are never loaded"):
        load_teacher(str(hubert))


def test_damaged_checkpoints(hubert):
    change_config(hubert, hidden_size=32)
    with pytest.raises(TeacherLoadError, match=r"do not fit config.json"):
        load_teacher(str(hubert))
    change_config(hubert, model_type="whisper")
    with pytest.raises(TeacherLoadError, match=r"0 tensors called \*conv1.weight"):
        load_teacher(str(hubert))
    change_config(hubert, model_type="bert")
    with pytest.raises(TeacherLoadError, match="'bert' model: supported are hubert"):
        load_teacher(str(hubert))
    change_config(hubert, model_type="hubert")
    (hubert / "model.safetensors").write_bytes(b"\x01" * 20)
    with pytest.raises(TeacherLoadError, match="no readable safetensors file"):
        load_teacher(str(hubert))
    (hubert / "config.json").write_text("{")
    with pytest.raises(TeacherLoadError, match="not valid JSON"):
        load_teacher(str(hubert))
    (hubert / "config.json").unlink()
    with pytest.raises(TeacherLoadError, match=r"no config\.json"):
        load_teacher(str(hubert))


def test_missing_folder_url_and_offline_hub(tmp_path, monkeypatch):
    with pytest.raises(TeacherLoadError, match="no teacher folder at"):
        load_teacher(str(tmp_path / "nothing"))
    with pytest.raises(TeacherLoadError, match="download it first"):
        load_teacher("s3://bucket/teacher")

    def no_connection(*arguments, **settings):
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(checkpoint, "cached_file", no_connection)
    with pytest.raises(TeacherLoadError, match=r"couldn't connect.*hf download some/teacher --local-dir"):
        load_teacher("some/teacher")


@pytest.mark.shared
def test_short_window_deviation_on_real_speech(shared):
    """The figures of docs/teachers.md, as upper bounds, on a few utterances."""
    path = str(shared / "teachers" / "whisper-base-encoder")
    files = sorted((shared / "corpora" / "an4" / "audio" / "test").glob("*.flac"))[::66]
    waveforms = [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files]
    for layer, bound in ((3, 0.05), (6, 1.0)):
        embeddings = [
            load_teacher(path, layer=layer, whisper_window=window).encode(waveforms)
            for window in ("short", "exact")
        ]
        overall, median = whisper_window.deviation(*embeddings)
        assert overall < bound
        assert median < 0.06
