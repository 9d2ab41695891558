"""The ONNX files: the same numbers as torch, in batches and alone, and the same texts out of sherpa-onnx."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import sherpa_onnx
import torch
from students_fakes import TinyStudent, small_conformer
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.students import onnx as exporter
from mvqkd.models.students.onnx import OnnxExportError, export_onnx, tokens_text
from mvqkd.models.students.transducer import ConformerTransducer
from mvqkd.models.students.units import CharUnits, train_units

UNITS = CharUnits(" ABCE")
TEXTS = ["A BAC", "CAB", "BE A", "ACE BE CAB"]
RATE_HZ = 16_000


def speech(text: str, seed: int = 0) -> np.ndarray:
    """A tone of 0.16 s for each letter, in noise; float32 at 16 kHz."""
    noise = np.random.default_rng(seed).normal(0, 0.003, (len(text) + 2) * 2560)
    tones = [
        0.0 if letter == " " else 0.2 * np.sin(np.arange(2560) * (0.1 + 0.12 * UNITS.encode(letter)[0]))
        for letter in f" {text} "
    ]
    return (noise + np.concatenate([np.broadcast_to(tone, 2560) for tone in tones])).astype(np.float32)


def greedy_texts(student: ConformerTransducer, waveforms: list[np.ndarray]) -> list[str]:
    """With at most one unit in a frame, as sherpa-onnx searches."""
    features = [student.features(torch.from_numpy(waveform)) for waveform in waveforms]
    lengths_B = torch.tensor([len(f) for f in features])
    units = student.greedy(pad_sequence(features, batch_first=True), lengths_B, max_units_per_frame=1)
    return [UNITS.decode(one) for one in units]


@pytest.fixture(scope="module")
def trained() -> ConformerTransducer:
    """A student that knows the texts by heart."""
    student = small_conformer(len(UNITS), features="fbank", encoder_dim=32, joiner_dim=32)
    waveforms = [speech(text) for text in TEXTS]
    features = [student.features(torch.from_numpy(waveform)) for waveform in waveforms]
    features_BTF, lengths_B = (
        pad_sequence(features, batch_first=True),
        torch.tensor([len(f) for f in features]),
    )
    units = [torch.tensor(UNITS.encode(text)) for text in TEXTS]
    units_BU, unit_lengths_B = pad_sequence(units, batch_first=True), torch.tensor([len(u) for u in units])
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for step in range(600):
        loss = student.train().loss(features_BTF, lengths_B, units_BU, unit_lengths_B).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 0 and greedy_texts(student.eval(), waveforms) == TEXTS and float(loss.detach()) < 0.5:
            return student
    raise AssertionError(
        f"not learnt: {greedy_texts(student.eval(), waveforms)}, loss {float(loss.detach()):.2f}"
    )


@pytest.fixture(scope="module")
def folder(trained: ConformerTransducer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx")
    files = export_onnx(trained, UNITS, path)
    assert [file.name for file in files] == ["encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"]
    return path


def run(path: Path, **inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


def test_encoder_gives_torchs_numbers_alone_and_in_a_batch_with_padding(trained, folder) -> None:
    generator = torch.Generator().manual_seed(5)
    for lengths in ([7], [50], [301], [90, 200, 7, 41], [8, 8]):
        features = [torch.randn(length, 80, generator=generator) * 4 - 8 for length in lengths]
        # sherpa-onnx pads with the logarithm of almost nothing.
        batch = pad_sequence(features, batch_first=True, padding_value=-23.0)
        encoded_NSJ, out_lengths_N = run(folder / "encoder.onnx", x=batch, x_lens=torch.tensor(lengths))
        with torch.no_grad():
            for row, own in enumerate(features):
                alone_NSD, alone_lengths_N = trained.encoder(own[None], torch.tensor([len(own)]))
                expected_SJ = trained.encoder_projection(alone_NSD)[0]
                assert int(out_lengths_N[row]) == int(alone_lengths_N[0])
                torch.testing.assert_close(
                    encoded_NSJ[row, : len(expected_SJ)], expected_SJ, atol=1e-4, rtol=1e-4
                )


@torch.no_grad()
def test_decoder_and_joiner(trained, folder) -> None:
    history_NC = torch.tensor([[0, 0], [0, 3], [2, 5], [4, 4], [1, 2]])
    expected_NJ = trained.predict(history_NC)
    torch.testing.assert_close(
        run(folder / "decoder.onnx", y=history_NC)[0], expected_NJ, atol=1e-5, rtol=1e-5
    )
    # Before the first unit sherpa-onnx gives -1 and then blank.
    start_NJ = run(folder / "decoder.onnx", y=torch.tensor([[-1, 0]]))[0]
    torch.testing.assert_close(start_NJ[0], expected_NJ[0], atol=1e-5, rtol=1e-5)
    encoded_NJ = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    logits_NV = run(folder / "joiner.onnx", encoder_out=encoded_NJ, decoder_out=expected_NJ)[0]
    torch.testing.assert_close(logits_NV, trained.join(encoded_NJ, expected_NJ), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
@pytest.mark.parametrize("model_type", ["", "transducer"])
def test_sherpa_onnx_gives_the_same_texts(trained, folder, method: str, model_type: str) -> None:
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        *(str(folder / name) for name in ("encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt")),
        decoding_method=method,
        model_type=model_type,
    )
    waveforms = [speech(text) for text in TEXTS] + [speech("B E A C E", 1), speech("CC BB", 2)]
    streams = []
    for waveform in waveforms:
        stream = recognizer.create_stream()
        stream.accept_waveform(RATE_HZ, waveform)
        streams.append(stream)
    recognizer.decode_streams(streams)
    theirs = [stream.result.text.strip() for stream in streams]
    if method == "greedy_search":
        assert theirs == [text.strip() for text in greedy_texts(trained, waveforms)]
    features = [trained.features(torch.from_numpy(waveform)) for waveform in waveforms]
    lengths_B = torch.tensor([len(f) for f in features])
    found = trained.beam(pad_sequence(features, batch_first=True), lengths_B, beam=4, modified=True)
    if method == "modified_beam_search":
        assert theirs == [UNITS.decode(units).strip() for units in found]
    assert theirs[: len(TEXTS)] == TEXTS and all(theirs)


def test_files_say_what_they_are_and_hold_no_paths(folder) -> None:
    metadata = {}
    for name in ("encoder", "decoder", "joiner"):
        model = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        metadata[name] = {item.key: item.value for item in model.metadata_props}
        assert b"mvqkd/models" not in model.SerializeToString() and b".py" not in model.SerializeToString()
    assert metadata["encoder"]["model_type"] == "conformer"
    assert (metadata["decoder"]["context_size"], metadata["decoder"]["vocab_size"]) == ("2", "6")
    assert metadata["joiner"]["joiner_dim"] == "32"
    assert (folder / "tokens.txt").read_text() == "<blk> 0\n▁ 1\nA 2\nB 3\nC 4\nE 5\n"


def test_tokens_of_pieces() -> None:
    texts = ["THE CAT SAT", "THE MAT", "A CAT AND A HAT", "HATS AND CATS"]
    units = train_units("sentencepiece", texts, vocab_size=14)
    lines = [line.split(" ") for line in tokens_text(units).splitlines()]
    assert lines[:2] == [["<blk>", "0"], ["<unk>", "1"]] and [int(number) for _, number in lines] == list(
        range(15)
    )
    symbols = [symbol for symbol, _ in lines]
    heard = "".join(symbols[unit] for unit in units.encode(texts[0])).replace("▁", " ").strip()
    assert heard == texts[0]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError, match=r"features log_mel at 16000 Hz.*student\.features fbank"):
        export_onnx(small_conformer(), UNITS, tmp_path)
    with pytest.raises(OnnxExportError, match=r"fbank at 8000 Hz"):
        export_onnx(small_conformer(features="fbank", sample_rate_hz=8_000), UNITS, tmp_path)
    with pytest.raises(OnnxExportError, match="a TinyStudent has no encoder, predictor and joiner"):
        export_onnx(TinyStudent(6), UNITS, tmp_path)
    with pytest.raises(OnnxExportError, match=r"\['\\t'\] cannot stand in tokens\.txt"):
        export_onnx(small_conformer(features="fbank"), CharUnits("\tA"), tmp_path)
    with pytest.raises(OnnxExportError, match="'▁'"):
        tokens_text(CharUnits(" ▁A"))
    assert not list(tmp_path.iterdir())


def test_other_numbers_than_torchs_are_refused(trained, folder) -> None:
    exporter._compare(folder, trained)
    other = small_conformer(len(UNITS), features="fbank", encoder_dim=32, joiner_dim=32).eval()
    with pytest.raises(OnnxExportError, match="differ from the student by"):
        exporter._compare(folder, other)
