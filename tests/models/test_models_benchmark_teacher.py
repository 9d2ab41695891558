"""The benchmark of teachers: its count of operations, its figures, its end."""

import json
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.teacher import __main__ as benchmark
from benchmarks.teacher import variants
from benchmarks.teacher.gauges import peak_tflops
from benchmarks.teacher.shapes import SHAPES, operations, random_teacher

SMALL = ["--device", "cpu", "--shape", "tiny", "--utterance-s", "0.5", "--repeats", "1", "--no-compile"]


def run(monkeypatch, capsys, *arguments: str) -> tuple[list[str], dict]:
    monkeypatch.setattr(sys, "argv", ["benchmarks.teacher", *SMALL, *arguments])
    assert benchmark.main() == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[:-1], json.loads(lines[-1])


def test_figures_of_a_small_run(monkeypatch, capsys, one_thread):
    lines, report = run(monkeypatch, capsys, "--json")
    assert [row["system"] for row in report["rows"]] == [
        *["ours"] * 4,
        *["ours, products"] * 2,
        *["transformers"] * 2,
    ]
    assert len(lines) == 8 and not report["left_out"]
    row = report["rows"][0]
    assert row["batch"] == "8 x 0.5 s" and row["padding"] == 0 and row["share_of_peak"] is None
    assert row["hours_per_hour"] == pytest.approx(4.0 / (row["ms"] / 1000), rel=0.01)
    assert report["rows"][3]["padding"] == pytest.approx(0.35)
    assert set(report["parts"]) == {"front_end", "positions", "layers"}
    assert set(report["quantizer_to_teacher"]) == {"full", "fast"}
    assert set(report["matmul_tflops"]) == {"float32"}


def test_ways_beside_each_other(monkeypatch, capsys, one_thread):
    monkeypatch.setattr(
        sys, "argv", ["benchmarks.teacher.variants", *SMALL[:-3], "--repeats", "1", "--dtype", "bfloat16"]
    )
    assert variants.main() == 0
    ways = json.loads(capsys.readouterr().out.splitlines()[-1])["ways"]
    assert set(ways) == set(variants.WAYS)
    for name, rows in ways.items():
        assert 0 < rows["deviation"] < 1e-4, name
        assert set(rows["32 x 0.5 s"]["parts_ms"]) == {"front_end", "positions", "layers"}
    assert ways["library as before"]["deviation"] > ways["products"]["deviation"]


def test_what_has_no_time_is_left_out(monkeypatch, capsys, one_thread):
    lines, figures = run(monkeypatch, capsys, "--seconds", "0")
    assert lines == []
    assert figures["left_out"] == ["ours, float32", "ours, products, float32", *["transformers, float32"] * 2]


@pytest.mark.parametrize("name", ["tiny", "hubert", "wavlm", "whisper"])
def test_operations_are_those_that_torch_counts(name):
    shape = SHAPES[
        {"hubert": "hubert-xlarge", "wavlm": "wavlm-large", "whisper": "whisper-base"}.get(name, name)
    ]
    if name != "whisper":
        settings = {**SHAPES["tiny"].settings, "hidden_size": 96}
        shape = type(shape)(architecture=shape.architecture, settings=settings, num_layers=3, layer=2)
    teacher = random_teacher(shape, torch.device("cpu"), "float32", compile=False)
    # Whisper's silence is computed and does not count, so its utterance has none.
    num_samples = 480_000 if name == "whisper" else 16_000
    # Of fused attention on the CPU nothing is counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        teacher.embed_batch([torch.randn(num_samples)])
    expected = counter.get_total_flops()
    if name == "wavlm":
        # The gate of the bias.
        expected -= 2 * 2 * 49 * 96 * 8
    if name == "whisper":
        # The filters of the spectrogram.
        expected -= 2 * 80 * 201 * 3_000
    assert operations(shape, num_samples) == pytest.approx(expected, rel=0.01)


def test_peaks_by_name():
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.0
    assert peak_tflops("NVIDIA H100 PCIe") == 756.0
    assert peak_tflops("Intel(R) Xeon(R) Processor, 2 cores") is None
