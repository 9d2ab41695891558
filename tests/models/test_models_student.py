"""The Conformer transducer: its lengths, its losses, and that no utterance sees its neighbours' padding."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio.models.conformer import ConformerLayer

from mvqkd.models.distillation.tap import tapped
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.conformer import MaskedConformerLayer
from mvqkd.models.students.subsampling import Subsampling, subsampled_length
from mvqkd.models.students.transducer import ConformerTransducer

CONFIG = StudentConfig(
    encoder_dim=16,
    num_layers=2,
    num_heads=2,
    ffn_dim=32,
    conv_kernel=7,
    dropout=0.0,
    predictor_dim=8,
    joiner_dim=16,
)


def make_student(*, with_ctc: bool = False, num_units: int = 6) -> ConformerTransducer:
    torch.manual_seed(0)
    return ConformerTransducer(CONFIG, num_units, with_ctc=with_ctc)


def make_features(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 80, generator=generator) for length in lengths]


def padded(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(features, batch_first=True), torch.tensor([len(f) for f in features])


@torch.no_grad()
def unsettle_batch_norm(student: ConformerTransducer) -> None:
    """Statistics and biases as after a training; fresh ones would hide what padding does."""
    generator = torch.Generator().manual_seed(9)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.2 + torch.rand(module.num_features, generator=generator))
        bias = getattr(module, "bias", None)
        if isinstance(bias, torch.nn.Parameter):
            bias.add_(torch.randn(bias.shape, generator=generator) * 0.3)


def test_subsampled_length_is_what_the_module_makes() -> None:
    subsampling = Subsampling(8).eval()
    for frames in range(7, 60):
        assert subsampling(torch.zeros(1, frames, 80)).shape[1] == subsampled_length(frames)
    lengths = torch.arange(60)
    assert subsampled_length(lengths).tolist() == [subsampled_length(int(length)) for length in lengths]
    assert [subsampled_length(frames) for frames in range(8)] == [0, 0, 0, 0, 0, 0, 0, 1]
    assert (
        subsampled_length(CONFIG.min_samples // 160 + 1) == 1
        and subsampled_length((CONFIG.min_samples - 1) // 160 + 1) == 0
    )


def test_frame_rate_and_offset() -> None:
    """Frame t sees mel frames 4 t to 4 t + 6, whose middle is at 30 ms + 40 ms t."""
    assert (CONFIG.frame_rate_hz, CONFIG.frame_offset_s) == (25.0, 0.03)
    features_BTF = torch.randn(1, 40, 80, requires_grad=True)
    Subsampling(8)(features_BTF)[0, 3].sum().backward()
    assert features_BTF.grad is not None
    seen = features_BTF.grad[0].abs().sum(dim=1).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (12, 18)


def test_without_padding_it_is_torchaudios_layer() -> None:
    arguments = {"input_dim": 16, "ffn_dim": 32, "num_attention_heads": 2, "depthwise_conv_kernel_size": 7}
    torch.manual_seed(1)
    theirs = ConformerLayer(**arguments).train()
    ours = MaskedConformerLayer(**arguments).train()
    ours.load_state_dict(theirs.state_dict())
    x_TBD, no_padding_BT = torch.randn(9, 3, 16), torch.zeros(3, 9, dtype=torch.bool)
    torch.testing.assert_close(ours(x_TBD, no_padding_BT), theirs(x_TBD, no_padding_BT))
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("training", [False, True])
def test_encodings_do_not_depend_on_padding(training: bool) -> None:
    """In training the batch norm sees the whole batch, but padding must not count in it."""
    features = make_features([90, 43, 12, 60])
    features_BTF, lengths_B = padded(features)
    more_BTF = torch.nn.functional.pad(features_BTF, (0, 0, 0, 80))
    more_BTF[1, 43:] = 7.0
    results = []
    for batch_BTF in (features_BTF, more_BTF):
        student = make_student().train(training)
        unsettle_batch_norm(student)
        with tapped(student, [1]) as taps:
            encoded_BTD, out_lengths_B = student.encoder(batch_BTF, lengths_B)
            results.append((encoded_BTD, taps[1]))
    for first_BTD, second_BTD in zip(*results, strict=True):
        for row, length in enumerate(out_lengths_B.tolist()):
            torch.testing.assert_close(
                first_BTD[row, :length], second_BTD[row, :length], atol=1e-5, rtol=1e-5
            )


def test_encodings_of_a_batch_are_those_of_each_utterance() -> None:
    features = make_features([90, 43, 7, 60])
    student = make_student().eval()
    unsettle_batch_norm(student)
    encoded_BTD, out_lengths_B = student.encoder(*padded(features))
    assert out_lengths_B.tolist() == [subsampled_length(len(f)) for f in features]
    for row, own in enumerate(features):
        alone_BTD, _ = student.encoder(*padded([own]))
        torch.testing.assert_close(encoded_BTD[row, : alone_BTD.shape[1]], alone_BTD[0], atol=1e-5, rtol=1e-5)


def test_greedy_of_a_batch_is_greedy_of_each() -> None:
    student = make_student(num_units=12).eval()
    unsettle_batch_norm(student)
    with torch.no_grad():
        student.output.weight *= 4
    features = make_features([120, 43, 12, 75, 99])
    together = student.greedy(*padded(features))
    assert together == [student.greedy(*padded([own]))[0] for own in features]
    assert len({tuple(units) for units in together}) > 2 and all(0 not in units for units in together)


def test_greedy_stops_at_the_limit_of_units_in_a_frame() -> None:
    student = make_student().eval()
    with torch.no_grad():
        student.output.bias[3] += 1000
    features_BTF, lengths_B = padded(make_features([40, 23]))
    expected = [subsampled_length(40) * 2, subsampled_length(23) * 2]
    assert [len(u) for u in student.greedy(features_BTF, lengths_B, max_units_per_frame=2)] == expected
    with torch.no_grad():
        student.output.bias[0] += 2000
    assert student.greedy(features_BTF, lengths_B) == [[], []]


def test_losses_do_not_depend_on_the_batch() -> None:
    student = make_student(with_ctc=True).eval()
    features = make_features([90, 60])
    units = [torch.tensor([1, 2, 3]), torch.tensor([4])]

    def losses(rows: list[int]) -> Tensor:
        encoded_BTD, lengths_B = student.encoder(*padded([features[row] for row in rows]))
        units_BU, unit_lengths_B = (
            pad_sequence([units[row] for row in rows], batch_first=True),
            torch.tensor([len(units[row]) for row in rows]),
        )
        arguments = (encoded_BTD, lengths_B, units_BU, unit_lengths_B)
        return torch.stack([student.transducer_loss(*arguments), student.ctc_loss(*arguments)])

    torch.testing.assert_close(losses([0, 1]), losses([0]) + losses([1]))
    encoded_BTD, lengths_B = student.encoder(*padded(features[:1]))
    nothing = student.transducer_loss(
        encoded_BTD, lengths_B, torch.zeros(1, 0, dtype=torch.long), torch.tensor([0])
    )
    assert nothing.isfinite()


def test_learns_by_heart() -> None:
    torch.manual_seed(0)
    student = make_student().train()
    features_BTF, lengths_B = padded(make_features([60, 48]))
    units_BU, unit_lengths_B = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    history = []
    for _ in range(80):
        encoded_BTD, out_lengths_B = student.encoder(features_BTF, lengths_B)
        loss = student.transducer_loss(encoded_BTD, out_lengths_B, units_BU, unit_lengths_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.1 * history[0]
    # Not in eval mode: after so few steps the batch norm's running statistics lag behind.
    assert student.greedy(features_BTF, lengths_B) == [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_dim": 10, "num_heads": 4}, "encoder_dim 10 is not a multiple of num_heads 4"),
        ({"conv_kernel": 4}, "conv_kernel must be odd, not 4"),
        ({"num_layers": 0}, "num_layers must be at least 1, not 0"),
        ({"predictor_dim": 10}, "predictor_dim must be a multiple of 4, not 10"),
        ({"predictor_dim": 2}, "predictor_dim must be a multiple of 4, not 2"),
        ({"joiner_dim": 0}, "joiner_dim must be at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"sample_rate_hz": 11_025}, "sample_rate_hz 11025 gives no mel frames every 10 ms"),
        ({"sample_rate_hz": 4_000}, "sample_rate_hz 4000 .* from 8000"),
        ({"features": "mfcc"}, "features must be log_mel or fbank, not 'mfcc'"),
        ({"units": "words"}, "units must be char or sentencepiece, not 'words'"),
    ],
)
def test_impossible_sizes(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_a_student_at_another_rate(rate_hz: int) -> None:
    """Its frames come 25 times a second of real time, whatever its audio is."""
    student = ConformerTransducer(replace(CONFIG, sample_rate_hz=rate_hz), 6).eval()
    frames = student.frames
    assert (frames.sample_rate_hz, frames.frame_rate_hz, frames.frame_offset_s) == (rate_hz, 25.0, 0.03)
    assert frames.min_samples == 0.06 * rate_hz
    for samples, expected in ((frames.min_samples - 1, 0), (frames.min_samples, 1), (2 * rate_hz, 49)):
        features_TF = student.features(torch.randn(samples))
        assert student.num_frames(len(features_TF)) == expected
    features_BTF, lengths_B = padded([student.features(torch.randn(2 * rate_hz))])
    assert student.encoder(features_BTF, lengths_B)[0].shape[1] == 49
    assert student.feature_rate_hz == 100


def test_records_of_before_there_were_rates() -> None:
    assert "sample_rate_hz" not in CONFIG.to_dict() and StudentConfig(**CONFIG.to_dict()) == CONFIG
    other = replace(CONFIG, sample_rate_hz=8_000)
    assert other.to_dict()["sample_rate_hz"] == 8_000 and StudentConfig(**other.to_dict()) == other


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_a_student_of_fbank(rate_hz: int) -> None:
    config = replace(CONFIG, sample_rate_hz=rate_hz, features="fbank")
    assert config.to_dict()["features"] == "fbank" and "features" not in CONFIG.to_dict()
    assert StudentConfig(**config.to_dict()) == config
    student = ConformerTransducer(config, 6).eval()
    frames = student.frames
    # Frame 0 sees frames 0 to 6 of fbank, the middle of which is at 35 ms.
    assert (frames.frame_rate_hz, frames.frame_offset_s) == (25.0, 0.035)
    for samples, expected in ((frames.min_samples - 1, 0), (frames.min_samples, 1), (2 * rate_hz, 49)):
        assert student.num_frames(len(student.features(torch.randn(samples)))) == expected
    features_BTF, lengths_B = padded([student.features(torch.randn(2 * rate_hz))])
    assert student.encoder(features_BTF, lengths_B)[0].shape[1] == 49
    assert set(student.state_dict()) == set(make_student().state_dict())


def test_fbank_comes_to_the_layers_in_the_range_of_log_mel() -> None:
    student = ConformerTransducer(replace(CONFIG, features="fbank"), 6).eval()
    subsampling = student.encoder.subsampling
    plain = Subsampling(16).eval()
    plain.load_state_dict(subsampling.state_dict())
    fbank_BTF = torch.randn(1, 40, 80, generator=torch.Generator().manual_seed(0)) * 4 - 7.5
    torch.testing.assert_close(subsampling(fbank_BTF), plain((fbank_BTF + 7.5) / 4))
    assert student.mask_value(fbank_BTF[0]) == pytest.approx(-7.5, abs=0.2)
    assert make_student().mask_value(fbank_BTF[0]) == 0.0


def test_beams_of_the_student() -> None:
    student = make_student(num_units=12).eval()
    unsettle_batch_norm(student)
    with torch.no_grad():
        student.output.weight *= 4
    batch = padded(make_features([120, 43, 12, 75]))
    assert student.beam(*batch, beam=1, modified=True) == student.greedy(*batch, max_units_per_frame=1)
    wide, modified = student.beam(*batch, beam=4), student.beam(*batch, beam=4, modified=True)
    assert len(wide) == len(modified) == 4 and wide != modified
    assert any(wide) and all(0 not in units for units in wide + modified)


def test_names_of_weights_are_those_of_before() -> None:
    names = set(make_student(with_ctc=True).state_dict())
    assert {name.split(".")[0] for name in names} == {
        "encoder", "predictor", "encoder_projection", "predictor_projection", "output", "ctc",
    }  # fmt: skip
    assert names >= {
        "encoder.subsampling.project.weight", "encoder.layers.1.conv_module.sequential.3.running_mean",
        "predictor.embedding.weight", "predictor.conv.bias", "output.bias", "ctc.weight",
    }  # fmt: skip
    assert not any(name.startswith("ctc") for name in make_student().state_dict())


def test_ctc_factor_and_head() -> None:
    assert ConformerTransducer(CONFIG, 6, ctc_scale=0.3).ctc is not None
    assert ConformerTransducer(CONFIG, 6).ctc is None
    with pytest.raises(ValueError, match=r"ctc_scale 0.3 needs a student with a CTC head"):
        ConformerTransducer(CONFIG, 6, ctc_scale=0.3, with_ctc=False)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a number from 0"):
            ConformerTransducer(CONFIG, 6, ctc_scale=wrong)
