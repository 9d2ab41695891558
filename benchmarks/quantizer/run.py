"""Starts one process for each figure, one after the other, and keeps what is measured already."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.quantizer.files import read_json
from benchmarks.quantizer.frames import Dataset
from benchmarks.quantizer.one import SAME_CODEBOOKS, Job
from benchmarks.quantizer.systems import SYSTEMS

MEASUREMENT_VERSION = 3
"""To be raised whenever the same settings would give other figures, so that no old result is taken for a new one."""

_REPOSITORY = Path(__file__).resolve().parents[2]
_OURS = _REPOSITORY / "models" / "quantizer"
_PACKAGES = {"faiss": ("faiss-cpu", "faiss-gpu", "faiss"), "multi_quantization": ("multi-quantization",)}


def run_all(jobs: list[Job]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of all jobs, and what is known of those that failed. A failure costs its own result only."""
    rows, failed = [], []
    for number, job in enumerate(jobs, start=1):
        title = f"[{number}/{len(jobs)}] {job.dataset.name}, {job.num_bytes} bytes, {job.system}"
        row = _known(job)
        if row is not None:
            _say(f"{title}: measured before")
        else:
            _say(f"{title} ...")
            error = run_child(job)
            row = _known(job)
            if row is None:
                known = {"system": job.system, "dataset": job.dataset.name, "bytes": job.num_bytes}
                failed.append({**known, "error": error or "it ended well and left no result"})
                _say(f"{title} failed: {failed[-1]['error']}")
        if row is not None:
            rows.append(row)
            if "rrl" in row:
                _say(f"{title}: RRL {row['rrl']:.4f}, fitted in {row['fit_s']:.0f} s")
    return rows, failed


def jobs_for(
    job: Job, dataset: Dataset, systems: Iterable[str], sizes: Iterable[int], out: Path
) -> list[Job]:
    """One job for each size and system that can have it, made from one with the settings that they share."""
    made = []
    for num_bytes in sorted(set(sizes)):
        for name in systems:
            reason = SYSTEMS[name].refuses(dataset.dim, num_bytes)
            if reason is not None:
                print(f"{name} is left out at {num_bytes} bytes of {dataset.name}: {reason}")
                continue
            # Any change of our code makes ours anew, and ours alone.
            identity = {"our_code": our_code_digest()} if name.startswith("ours") else {}
            made.append(
                replace(
                    job,
                    system=name,
                    dataset=dataset,
                    num_bytes=num_bytes,
                    device="cpu" if SYSTEMS[name].cpu_only else job.device,
                    identity=job.identity | identity,
                    result=str(result_path(out, dataset.name, num_bytes, name)),
                )
            )
    return made


def same_codebooks_job(job: Job, dataset: Dataset, checkpoint: Path, out: Path) -> Job:
    """Encoding alone, on the codebooks of a checkpoint."""
    identity = {"our_code": our_code_digest(), "checkpoint": _digest(checkpoint.read_bytes())}
    return replace(
        job,
        system=SAME_CODEBOOKS,
        dataset=dataset,
        num_bytes=0,
        checkpoint=str(checkpoint),
        identity=job.identity | identity,
        result=str(result_path(out, dataset.name, 0, SAME_CODEBOOKS)),
    )


def result_path(out: Path, dataset: str, num_bytes: int, system: str) -> Path:
    """Where a result lies."""
    return out / "results" / f"{dataset}-{num_bytes}-{system}.json"


def versions() -> dict[str, str]:
    """Of Python, torch, and the systems that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for module, packages in _PACKAGES.items():
        for package in packages if importlib.util.find_spec(module) is not None else ():
            try:
                found[module] = importlib.metadata.version(package)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def device_name(device: torch.device) -> str:
    """The GPU or the processor, as it calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {os.cpu_count()} cores" if models else platform.machine()


def our_code_digest() -> str:
    """Of the quantizer's source."""
    return _digest(b"".join(path.read_bytes() for path in sorted(_OURS.glob("*.py"))))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _known(job: Job) -> dict[str, Any] | None:
    row = read_json(Path(job.result))
    return row if isinstance(row, dict) and row.get("digest") == job.digest else None


def run_child(job: Job) -> str | None:
    """Why the process failed; None if it did not."""
    environment = dict(os.environ)
    # The folder of the call may be another, and its relative paths must stay good.
    paths = [str(_REPOSITORY), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment[variable] = str(job.threads)
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantizer.one", job.to_json()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if ended.returncode == 0:
        return None
    if ended.returncode < 0:
        return f"killed by signal {-ended.returncode}; if memory was short, give --max-train-frames"
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    sys.stderr.write(ended.stderr)
    return lines[-1] if lines else f"exit code {ended.returncode}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
