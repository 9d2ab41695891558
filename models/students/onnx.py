"""A trained transducer as ONNX files that sherpa-onnx runs: encoder, decoder (the predictor), joiner, tokens.

Inputs, outputs and metadata are those of the Conformer and Zipformer transducers that icefall exports, which
`sherpa_onnx.OfflineRecognizer.from_transducer` takes. The packages `onnx`, `onnxscript` and `onnxruntime` are needed,
and imported only here.

Shape suffixes: N utterances, T feature frames, F mel bins, S encoder frames, J joiner channels, C units of context.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvqkd.models.features import NUM_MEL_BINS
from mvqkd.models.students.base import Student
from mvqkd.models.students.transducer import ConformerTransducer, Predictor
from mvqkd.models.students.units import Units

ENCODER, DECODER, JOINER, TOKENS = "encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"
OPSET = 18
SAMPLE_RATE_HZ = 16_000
TOLERANCE = 1e-4
"""By how much ONNX Runtime may differ from torch."""
_LEAST_FRAMES = 7


class OnnxExportError(ValueError):
    """The student cannot be exported; the message says what it would have to be, or what is missing."""


class _Encoder(nn.Module):
    """Fbank and lengths to what the joiner takes, and lengths."""

    def __init__(self, student: ConformerTransducer) -> None:
        super().__init__()
        self.encoder, self.projection = student.encoder, student.encoder_projection

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, T, 80) and int64 (N,) to (N, S, J) and int64 (N,)."""
        encoded_NSD, lengths_N = self.encoder(x, x_lens)
        return self.projection(encoded_NSD), lengths_N


class _Decoder(nn.Module):
    """The last units to what the joiner takes."""

    def __init__(self, student: ConformerTransducer) -> None:
        super().__init__()
        self.student = student

    def forward(self, y: Tensor) -> Tensor:
        """int64 (N, C), below 0 where there is no unit yet, to (N, J)."""
        return self.student.predict(y.clamp_min(0))


class _Joiner(nn.Module):
    """One frame of both to logits."""

    def __init__(self, student: ConformerTransducer) -> None:
        super().__init__()
        self.student = student

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """(N, J) each to (N, units)."""
        return self.student.join(encoder_out, decoder_out)


def export_onnx(student: Student, units: Units, folder: Path) -> list[Path]:
    """Write the four files into a folder, and compare the models with torch.

    Args:
        student: trained, on the CPU.
        units: its output units.
        folder: there, and empty or with files of the same names.

    Returns:
        The files.

    Raises:
        OnnxExportError: the student is none that sherpa-onnx can run, a package is missing, or the exported models give
            other numbers than the student.
    """
    tokens = tokens_text(units)
    student = _exportable(student).eval()
    _need_packages()
    num_channels = student.config.joiner_dim
    batch, frames = torch.export.Dim("N", min=1), torch.export.Dim("T", min=_LEAST_FRAMES)
    generator = torch.Generator().manual_seed(0)
    features_NTF = torch.randn(2, 60, NUM_MEL_BINS, generator=generator) * 4 - 8
    encoder_out_NJ, decoder_out_NJ = torch.randn(2, 2, num_channels, generator=generator).unbind()
    models: dict[str, tuple[nn.Module, dict[str, Tensor], list[str], dict[str, Any], dict[str, str]]] = {
        ENCODER: (
            _Encoder(student),
            {"x": features_NTF, "x_lens": torch.tensor([60, 41])},
            ["encoder_out", "encoder_out_lens"],
            {"x": {0: batch, 1: frames}, "x_lens": {0: batch}},
            {
                "model_type": "conformer",
                "sample_rate": str(SAMPLE_RATE_HZ),
                "feature_dim": str(NUM_MEL_BINS),
                "comment": "non-streaming Conformer transducer with a stateless predictor",
            },
        ),
        DECODER: (
            _Decoder(student),
            {"y": torch.tensor([[-1, 0], [0, 1]])},
            ["decoder_out"],
            {"y": {0: batch}},
            {"context_size": str(Predictor.CONTEXT), "vocab_size": str(student.num_units)},
        ),
        JOINER: (
            _Joiner(student),
            {"encoder_out": encoder_out_NJ, "decoder_out": decoder_out_NJ},
            ["logit"],
            {"encoder_out": {0: batch}, "decoder_out": {0: batch}},
            {"joiner_dim": str(num_channels)},
        ),
    }
    for name, (model, inputs, outputs, shapes, metadata) in models.items():
        _write(folder / name, model.eval(), inputs, outputs, shapes, metadata)
    _compare(folder, student)
    (folder / TOKENS).write_text(tokens, encoding="utf-8")
    return [folder / name for name in (ENCODER, DECODER, JOINER, TOKENS)]


def tokens_text(units: Units) -> str:
    """The content of `tokens.txt`: a line for each unit, its symbol and its number.

    Raises:
        OnnxExportError: two units have the same symbol, or one is white space other than a space.
    """
    symbols = units.symbols()
    wrong = sorted({symbol for symbol in symbols if symbol.split() != [symbol] or symbols.count(symbol) > 1})
    if wrong:
        raise OnnxExportError(
            f"the units {wrong} cannot stand in tokens.txt, whose symbols are different ones without white space; "
            "remove these characters from the transcripts and train again"
        )
    return "".join(f"{symbol} {number}\n" for number, symbol in enumerate(symbols))


def _exportable(student: Student) -> ConformerTransducer:
    if not isinstance(student, ConformerTransducer):
        raise OnnxExportError(
            f"a {type(student).__name__} has no encoder, predictor and joiner that sherpa-onnx runs; export a "
            "Conformer transducer"
        )
    if student.feature_kind != "fbank" or student.frames.sample_rate_hz != SAMPLE_RATE_HZ:
        raise OnnxExportError(
            f"the student takes features {student.feature_kind} at {student.frames.sample_rate_hz} Hz, but sherpa-onnx "
            f"computes fbank at {SAMPLE_RATE_HZ} Hz: train one with student.features fbank and student.sample_rate_hz "
            f"{SAMPLE_RATE_HZ}"
        )
    return student


def _need_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OnnxExportError(f"{error.name} is not installed; pip install 'mvqkd[onnx]'") from error


def _write(
    path: Path,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: list[str],
    shapes: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> None:
    import onnx

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_log():
        warnings.simplefilter("ignore")  # about names of axes and packages that are not needed
        program = torch.onnx.export(
            model,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=dict(shapes),
            opset_version=OPSET,
            dynamo=True,
        )
    assert program is not None
    content = program.model_proto
    for described in (*content.graph.node, *content.graph.input, *content.graph.output, content.graph):
        # Lines of source code, with their paths on this machine.
        del described.metadata_props[:]
    for key, value in {**metadata, "version": "1", "model_author": "mvqkd"}.items():
        content.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(content)
    onnx.save(content, str(path))


@contextlib.contextmanager
def _quiet_log() -> Any:
    """The exporter warns of each package that it could use and that is not there."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@torch.no_grad()
def _compare(folder: Path, student: ConformerTransducer) -> None:
    """Raises OnnxExportError where ONNX Runtime finds other numbers than torch, in a batch with padding."""
    import onnxruntime

    def run(name: str, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(x) for x in session.run(None, {k: v.numpy() for k, v in inputs.items()})]

    generator = torch.Generator().manual_seed(1)
    features_NTF = torch.randn(3, 203, NUM_MEL_BINS, generator=generator) * 4 - 8
    lengths_N = torch.tensor([203, _LEAST_FRAMES, 118])
    expected_NSJ, expected_lengths_N = _Encoder(student)(features_NTF, lengths_N)
    encoded_NSJ, out_lengths_N = run(ENCODER, {"x": features_NTF, "x_lens": lengths_N})
    keep_NS = torch.arange(expected_NSJ.shape[1]) < expected_lengths_N.unsqueeze(1)
    history_NC = torch.tensor([[-1, 0], [0, 1], [1, student.num_units - 1]])
    expected_NJ = _Decoder(student)(history_NC)
    frames_NJ = expected_NSJ[:, 0]
    pairs = [
        (out_lengths_N, expected_lengths_N),
        (encoded_NSJ[keep_NS], expected_NSJ[keep_NS]),
        (run(DECODER, {"y": history_NC})[0], expected_NJ),
        (
            run(JOINER, {"encoder_out": frames_NJ, "decoder_out": expected_NJ})[0],
            student.join(frames_NJ, expected_NJ),
        ),
    ]
    for found, expected in pairs:
        # Relative to 1 and to the number itself.
        off = float(((found - expected).abs() / expected.abs().clamp_min(1)).max())
        if not off <= TOLERANCE:
            raise OnnxExportError(
                f"the exported models differ from the student by {off:g}, more than {TOLERANCE:g}: this version of "
                f"torch ({torch.__version__}) exports them wrongly; take another one"
            )
