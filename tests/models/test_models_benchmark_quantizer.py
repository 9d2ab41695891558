"""`python -m benchmarks.quantizer` at toy size."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quantizer import __main__ as command
from benchmarks.quantizer import one, run

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = [
    "--no-gaussian",
    "--threads",
    "1",
    "--minutes",
    "0.002",
    "--probe-steps",
    "5",
    "--probe-frames",
    "100",
    "--bytes",
    "2",
]
BARE = (
    "import sys\n"
    "for name in ('faiss', 'multi_quantization', 'soundfile', 'rich', 'matplotlib', 'numba', 'lhotse', 'ray',"
    " 'torchaudio'):\n"
    "    sys.modules[name] = None\n"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def started(monkeypatch):
    """Run what a process of its own would do in this one; the systems and sizes that were started."""
    jobs = []

    def run_child(job):
        jobs.append((job.system, job.num_bytes))
        monkeypatch.setattr(sys, "argv", ["one", job.to_json()])
        try:
            one.main()
        except (ValueError, RuntimeError) as error:
            return str(error)
        return None

    monkeypatch.setattr(run, "run_child", run_child)
    return jobs


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    def called(*arguments):
        """The exit code, what was printed, and the report of the last line."""
        monkeypatch.setattr(sys, "argv", ["quantizer", *arguments, "--out", str(tmp_path / "out"), "--json"])
        code = command.main()
        shown = capsys.readouterr().out
        return code, shown, json.loads(shown.splitlines()[-1])

    return called


def test_whole_command(frames, started, call, tmp_path):
    pytest.importorskip("faiss")
    pytest.importorskip("matplotlib")
    settings = [*TINY, "--systems", "faiss-pq", "faiss-rq", "ours", "ours-paper"]
    code, shown, result = call(*frames, *settings)
    assert code == 0 and result["failed"] == [] and result["left_out"] == {}
    assert started == [("ours", 2), ("ours-paper", 2), ("faiss-pq", 2), ("faiss-rq", 2)]
    assert all(text in shown for text in ("embeddings: 300 test frames of 16", "RRL/RQ", "ours-paper"))
    rows = {row["system"]: row for row in result["rows"]}
    assert rows["ours"]["rrl"] < rows["ours"]["rrl_of_first"]["1"] < 1
    fast = rows.pop("ours, fast encode")
    assert rows["ours"]["rrl"] < fast["rrl"] < 1 and fast["encode_fps"] > 0 and fast["speed_vs_rq"] > 0
    assert rows.pop("faiss-rq, fast encode")["encode_fps"] > 0
    for row in rows.values():
        assert 0 < row["rrl"] < 1 and row["rrl"] == row["rrl_drawn"] and row["judged_frames"] == 300
        assert 0 < row["usage_entropy_bits"] <= 8 and 0 < row["linear_nats"] < 8 and row["hidden_nats"] > 0
        assert row["encode_fps"] > 0 and row["fit_s"] > 0 and row["peak_memory_mb"] >= 0
        for split, count in (("test", 300), ("train", 100)):
            codes = np.load(tmp_path / "out" / "results" / f"embeddings-2-{row['system']}-{split}-codes.npy")
            assert codes.dtype == np.uint8 and codes.shape == (count, 2)
    assert rows["faiss-rq"]["rrl_vs_rq"] == 1 and rows["faiss-rq"]["rrl"] < rows["faiss-pq"]["rrl"]
    assert rows["ours-paper"]["history"] and rows["ours-paper"]["details"]["steps_per_phase"] >= 1
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == result
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")

    started.clear()
    code, shown, again = call(*frames, *TINY, "--systems", "faiss-pq", "ours-paper", "--bytes", "3", "2")
    assert code == 0 and started == [("ours-paper", 3)]
    assert "faiss-pq is left out at 3 bytes of embeddings: 16 channels cannot be cut into 3" in shown
    # What stood beside FAISS RQ does so no longer; all that was measured is as it was.
    for row in again["rows"]:
        if row["bytes"] == 2:
            assert row.items() <= rows[row["system"]].items()


def test_a_failure_costs_its_own_row(frames, started, call):
    pytest.importorskip("faiss")
    settings = [*TINY, "--max-train-frames", "100", "--systems", "faiss-pq", "ours-paper"]
    code, shown, result = call(*frames, *settings)
    assert code == command.SOME_FAILED
    assert [row["system"] for row in result["rows"]] == ["ours-paper"]
    (failed,) = result["failed"]
    assert (failed["system"], failed["dataset"], failed["bytes"]) == ("faiss-pq", "embeddings", 2)
    assert "training points (100)" in failed["error"]
    assert f"failed: embeddings, 2 bytes, faiss-pq: {failed['error']}" in shown
    started.clear()
    assert call(*frames, *settings)[0] == command.SOME_FAILED and started == [("faiss-pq", 2)]


def test_what_a_process_says_at_its_end(frames, monkeypatch, tmp_path):
    arguments = command.make_parser().parse_args([*frames, *TINY, "--systems", "ours-paper"])
    (job,), _ = command.prepare(arguments)
    assert one.Job.from_json(job.to_json()) == job
    assert replace(job, result="elsewhere").digest == job.digest != replace(job, seed=2).digest
    for script, error in (
        ("echo a line >&2; echo ValueError: too odd >&2; exit 1", "ValueError: too odd"),
        ("kill -9 $$", "killed by signal 9; if memory was short, give --max-train-frames"),
        ("exit 0", None),
    ):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        assert run.run_child(job) == error


@pytest.mark.integration
def test_bare_machine(frames, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)  # so that the processes that are started are as bare
    settings = ["--out", str(tmp_path / "out"), "--systems", "ours-paper", "faiss-rq", "multi_quantization"]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantizer", *frames, *TINY, *settings],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "faiss-rq is left out: faiss is not installed: pip install faiss-cpu\n" in ended.stdout
    assert "multi_quantization is not installed: pip install multi-quantization==0.1.1\n" in ended.stdout
    assert "bytes  system         RRL  linear nats" in ended.stdout
    assert "matplotlib is not installed" in ended.stdout and not (tmp_path / "out" / "plot.png").exists()
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert row["system"] == "ours-paper" and 0 < row["rrl"] < 1 and row["peak_memory_mb"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --corpus and --teacher, or --train-frames and --test-frames"),
        (["--corpus", "x"], "give --corpus and --teacher"),
        (["--train-frames", "no.npy", "--test-frames", "no.npy"], "No such file"),
        (["--corpus", "x", "--teacher", "no-teacher"], "no config.json in no-teacher"),
        (["--minutes", "0"], "is not above 0"),
        (["--systems", "mine"], "invalid choice: 'mine'"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["quantizer", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert message in capsys.readouterr().err
