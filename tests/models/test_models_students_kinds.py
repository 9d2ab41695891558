"""Every kind of student: exact in a batch, tapped in order, the same piece by piece, built of its settings alone."""

import math
from pathlib import Path

import pytest
import torch

from mvqkd.models.decoding.streaming import StreamingDecoder, can_stream
from mvqkd.models.distillation.heads import TargetSpec, build_head
from mvqkd.models.distillation.model import AttachedHead, DistillationModel
from mvqkd.models.distillation.tap import tapped
from mvqkd.models.students.base import Student
from mvqkd.models.students.build import build_student
from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.encoded import EncodedStudent
from mvqkd.models.students.kinds import AnyStudentConfig, EmformerConfig, OwnConfig, config_of, of_kind
from mvqkd.models.students.subsampling import subsampled_length

SIZES = {
    "encoder_dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "dropout": 0.0, "predictor_dim": 8,
    "joiner_dim": 16,
}  # fmt: skip
EMFORMER = {"segment_ms": 160, "left_context_ms": 320, "right_context_ms": 80}
KINDS: dict[str, AnyStudentConfig] = {
    "conformer": StudentConfig(**SIZES, conv_kernel=5),
    "conformer ctc": StudentConfig(**SIZES, conv_kernel=5, loss="ctc"),
    "emformer": EmformerConfig(**SIZES, **EMFORMER),
    "emformer ctc": EmformerConfig(**SIZES, **EMFORMER, loss="ctc"),
    "emformer with memory": EmformerConfig(**SIZES, **EMFORMER, memory_segments=2),
    "emformer without right context": EmformerConfig(**SIZES, **{**EMFORMER, "right_context_ms": 0}),
}
STREAMING = [name for name in KINDS if name.startswith("emformer")]
LENGTHS = [97, 61, 150, 23]


def make(name: str, *, ctc_scale: float = 0.0) -> EncodedStudent:
    torch.manual_seed(1)
    student = build_student(KINDS[name], 6, ctc_scale=ctc_scale)
    assert isinstance(student, EncodedStudent)
    return student.eval()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    lengths_B = torch.tensor(LENGTHS)
    features_BTF = torch.randn(len(LENGTHS), max(LENGTHS), 80)
    features_BTF[torch.arange(max(LENGTHS)) >= lengths_B.unsqueeze(1)] = 0.0
    return features_BTF, lengths_B


@pytest.mark.parametrize("name", KINDS)
def test_an_utterance_does_not_depend_on_its_batch(name: str) -> None:
    student, (features_BTF, lengths_B) = make(name), make_batch()
    with torch.no_grad(), tapped(student, [1, 2]) as taps:
        encoded_BSD, out_B = student.encoder(features_BTF, lengths_B)
        together = {number: taps[number].clone() for number in (1, 2)}
    assert out_B.tolist() == [subsampled_length(length) for length in LENGTHS]
    assert torch.equal(student.encode(features_BTF, lengths_B), out_B)
    for row, length in enumerate(LENGTHS):
        frames = int(out_B[row])
        assert frames == student.num_frames(length)
        with torch.no_grad(), tapped(student, [1, 2]) as taps:
            alone_BSD, _ = student.encoder(features_BTF[row : row + 1, :length], lengths_B[row : row + 1])
            for number in (1, 2):
                assert taps[number].shape == (1, frames, student.layer_channels(number))
                torch.testing.assert_close(
                    taps[number][0], together[number][row, :frames], atol=1e-5, rtol=1e-4
                )
        torch.testing.assert_close(alone_BSD[0], encoded_BSD[row, :frames], atol=1e-5, rtol=1e-4)
        # The last layer's frames are what the encoder puts out.
        torch.testing.assert_close(together[2][row, :frames], encoded_BSD[row, :frames])


@pytest.mark.parametrize("name", KINDS)
def test_trains_with_codes_and_every_parameter_takes_part(name: str) -> None:
    student = make(name, ctc_scale=0.0 if name.endswith("ctc") else 0.3)
    spec = TargetSpec(kind="codes", num_codebooks=4, codebook_size=16)
    head = build_head(spec, student.layer_channels(1))
    model = DistillationModel(student, {"codebook": AttachedHead(layer=1, scale=0.1, head=head)}).train()
    features_BTF, lengths_B = make_batch()
    frames = subsampled_length(max(LENGTHS))
    targets = {"codebook": torch.randint(0, 16, (len(LENGTHS), frames, 4))}
    units_BU, unit_lengths_B = torch.randint(1, 6, (len(LENGTHS), 3)), torch.tensor([3, 2, 3, 1])
    losses = model(features_BTF, lengths_B, units_BU, unit_lengths_B, targets)
    losses.total.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert losses.num_frames == sum(subsampled_length(length) for length in LENGTHS)


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("chunk", [160, 1000, 7777, 100_000])
def test_piece_by_piece_the_units_are_those_of_the_whole(name: str, chunk: int) -> None:
    student = make(name)
    output = student.output
    assert isinstance(output, torch.nn.Linear)
    with torch.no_grad():
        output.weight *= 6.0  # so that a student that has learned nothing says something
    torch.manual_seed(3)
    decoder = StreamingDecoder(student)
    for samples in (23_456, 6_000, 40_000):
        waveform_T = torch.randn(samples) * 0.1
        features_TF = student.features(waveform_T)
        whole = student.greedy(features_TF.unsqueeze(0), torch.tensor([len(features_TF)]))[0]
        timed = [unit for piece in waveform_T.split(chunk) for unit in decoder.feed(piece)]
        timed += decoder.finish()
        assert [unit.unit for unit in timed] == whole
        assert whole
        times = [unit.time_s for unit in timed]
        assert times == sorted(times) and times[-1] < samples / 16_000
        for unit in timed:
            # What is said at a frame comes out at most a latency and a chunk later, or when the audio ends.
            late = unit.heard_s - unit.time_s
            assert late <= student.latency_s + chunk / 16_000 + 1e-9


def test_latency_is_what_a_frame_waits_for() -> None:
    """Audio later than the latency changes no frame; audio just before it does."""
    student = make("emformer")
    latency_s = student.latency_s
    assert latency_s == pytest.approx(0.16 + 0.08 - 0.04 + 0.03 + 0.03, abs=0.011)
    assert math.isinf(make("conformer").latency_s)
    torch.manual_seed(4)
    waveform_T = torch.randn(32_000) * 0.1
    first = 0  # the first frame of a segment waits longest
    center_s = student.frames.frame_offset_s + first / 25

    def frame(waveform: torch.Tensor) -> torch.Tensor:
        features_TF = student.features(waveform)
        with torch.no_grad():
            return student.encoder(features_TF.unsqueeze(0), torch.tensor([len(features_TF)]))[0][0, first]

    after = round((center_s + latency_s) * 16_000)
    later = waveform_T.clone()
    later[after:] = 0.3
    assert torch.equal(frame(later), frame(waveform_T))
    sooner = waveform_T.clone()
    sooner[after - 800 :] = 0.3
    assert not torch.equal(frame(sooner), frame(waveform_T))


def test_what_hears_the_whole_utterance_is_not_streamed() -> None:
    with pytest.raises(ValueError, match=r"hears the whole utterance.*student\.kind: emformer"):
        StreamingDecoder(make("conformer"))  # type: ignore[arg-type]
    assert can_stream(make("emformer")) and not can_stream(make("conformer"))


def test_settings_come_back_and_those_of_before_are_a_conformers() -> None:
    for config in (*KINDS.values(), OwnConfig(import_path="a.b:C", options={"x": 1})):
        assert config_of(config.to_dict()) == config
    assert "kind" not in StudentConfig().to_dict() and "loss" not in StudentConfig().to_dict()
    assert config_of({"encoder_dim": 16}) == StudentConfig(encoder_dim=16)
    assert of_kind(KINDS["conformer"], "emformer")["encoder_dim"] == 16
    with pytest.raises(ValueError, match="kind 'zipformer'; this version knows conformer, emformer, own"):
        config_of({"kind": "zipformer"})


def test_impossible_sizes() -> None:
    for changes, words in (
        ({"segment_ms": 100}, "segment_ms 100 is not a multiple of the 40 ms of a frame from 40; take 80"),
        ({"right_context_ms": -40}, "right_context_ms -40 is not"),
        ({"memory_segments": -1}, "memory_segments must be at least 0"),
        ({"loss": "mse"}, "loss must be transducer or ctc"),
    ):
        with pytest.raises(ValueError, match=words):
            EmformerConfig(**changes)  # type: ignore[arg-type]


def test_ones_own_is_imported_when_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_pkg.py").write_text(
        "import torch\n"
        "from mvqkd.models.students.ctc import CtcStudent\n\n\n"
        "class Tiny(CtcStudent):\n"
        "    def __init__(self, num_units, *, width):\n"
        "        super().__init__()\n"
        "        self.channels = width\n"
        "        self.layers = torch.nn.ModuleList([torch.nn.Linear(80, width)])\n"
        "        self.output = torch.nn.Linear(width, num_units)\n\n"
        "    def logits(self, features, lengths):\n"
        "        return self.output(self.layers[0](features)), lengths\n\n\n"
        "def nothing(num_units):\n"
        "    return 1\n"
    )
    config = OwnConfig(import_path="their_pkg:Tiny", options={"width": 12})
    with pytest.raises(ValueError, match=r"their_pkg:Tiny: No module named 'their_pkg'; install the package"):
        build_student(config, 5)
    monkeypatch.syspath_prepend(str(tmp_path))
    student = build_student(config, 5)
    assert isinstance(student, Student) and student.layer_channels(1) == 12
    for path, options, words in (
        ("their_pkg:None_", {}, "has no None_"),
        ("their_pkg:Tiny", {}, r"with student.options \[\].*width"),
        ("their_pkg:nothing", {}, "gives a int, which is no .*Student; wrap it in one"),
    ):
        with pytest.raises(ValueError, match=words):
            build_student(OwnConfig(import_path=path, options=options), 5)
    with pytest.raises(ValueError, match=r"'their pkg' is none; write it as package\.module:Name"):
        OwnConfig(import_path="their pkg")
