"""One figure in a process of its own, so that its peak memory is its own: `python -m benchmarks.quantizer.one`.

Takes a `Job` as JSON, writes the result beside the test frames' codes.

Shape suffixes: M frames in all, B those drawn, D embedding dimension, N codebooks.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quantizer.files import write_json, written_aside
from benchmarks.quantizer.fitting import FitOptions, Fitted
from benchmarks.quantizer.frames import GAUSSIAN, Dataset, evenly
from benchmarks.quantizer.gauges import PeakMemory, median_seconds
from benchmarks.quantizer.probes import probe_nats
from benchmarks.quantizer.same_codebooks import same_codebooks
from benchmarks.quantizer.systems import SYSTEMS
from mvqkd.models.quantizer import rrl, usage_entropy_bits

SAME_CODEBOOKS = "same-codebooks"
DRAWN_FRAMES = 2048
_PATIENCE_S = 300.0
_CODEBOOK_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to measure. All of it but the place of the result decides about the digest.

    `identity` says what is not a setting and changes figures all the same: versions, the machine, our code.
    """

    dataset: Dataset
    budget_s: float
    device: str
    threads: int
    seed: int
    probe_steps: int
    probe_frames: int
    peer_encode_frames: int
    identity: dict[str, str]
    system: str = ""
    num_bytes: int = 0
    result: str = ""
    checkpoint: str = ""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Job":
        """What `to_json` wrote."""
        values = json.loads(text)
        return Job(**{**values, "dataset": Dataset(**values["dataset"])})

    @property
    def digest(self) -> str:
        """Equal for jobs with the same result, whatever folder they lie in."""
        anywhere = replace(self, result="", dataset=replace(self.dataset, train="", test=""), checkpoint="")
        return hashlib.sha256(anywhere.to_json().encode()).hexdigest()[:16]


def main() -> None:
    """Measure, write the result."""
    job = Job.from_json(sys.argv[1])
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    device = torch.device(job.device)
    train_MD, test_MD = (x_MD.to(device) for x_MD in job.dataset.load())
    if job.system == SAME_CODEBOOKS:
        figures = same_codebooks(test_MD, Path(job.checkpoint), job.peer_encode_frames)
    else:
        figures = measure(job, train_MD, test_MD)
    known = {"digest": job.digest, "system": job.system, "dataset": job.dataset.name}
    write_json(Path(job.result), {**known, "bytes": job.num_bytes, **figures})


def measure(job: Job, train_MD: Tensor, test_MD: Tensor) -> dict[str, Any]:
    """Fit, encode, decode; then, except on the Gaussian, the probes."""
    device = train_MD.device
    memory = PeakMemory(device)
    options = FitOptions(
        num_bytes=job.num_bytes,
        budget_s=job.budget_s,
        seed=job.seed,
        threads=job.threads,
        device=device,
        peer_encode_frames=job.peer_encode_frames,
    )
    fitted = SYSTEMS[job.system].fit(train_MD, options)
    speed_BD = _drawn(test_MD, fitted.encode_frames)
    fitted.encode(speed_BD[:_CODEBOOK_SIZE])
    encode_fps = len(speed_BD) / median_seconds([lambda: fitted.encode(speed_BD)], device)[0]
    judged_MD = test_MD
    if fitted.slow and len(test_MD) / encode_fps > _PATIENCE_S:
        judged_MD = _drawn(test_MD, DRAWN_FRAMES)
    codes_MN = fitted.encode(judged_MD)
    x_hat_MD = fitted.decode(codes_MN)
    # Fewer frames seem to use fewer entries, so equally many for all systems.
    entropy_N = usage_entropy_bits(_drawn(codes_MN, DRAWN_FRAMES), _CODEBOOK_SIZE)
    figures = {
        "rrl": rrl(judged_MD, x_hat_MD),
        "rrl_drawn": rrl(_drawn(judged_MD, DRAWN_FRAMES), _drawn(x_hat_MD, DRAWN_FRAMES)),
        "judged_frames": len(judged_MD),
        "fit_s": fitted.fit_s,
        "encode_fps": encode_fps,
        "encode_frames": len(speed_BD),
        "peak_memory_mb": memory.megabytes(),
        "usage_entropy_bits": float(entropy_N.mean()),
        "usage_entropy_bits_each": entropy_N.tolist(),
        "history": fitted.history,
        "details": fitted.details,
    }
    if fitted.encode_fast is not None:
        encode_fast = fitted.encode_fast
        encode_fast(speed_BD[:_CODEBOOK_SIZE])
        x_fast_MD = fitted.decode(encode_fast(judged_MD))
        figures["fast"] = {
            "encode_fps": len(speed_BD) / median_seconds([lambda: encode_fast(speed_BD)], device)[0],
            "rrl": rrl(judged_MD, x_fast_MD),
            "rrl_drawn": rrl(_drawn(judged_MD, DRAWN_FRAMES), _drawn(x_fast_MD, DRAWN_FRAMES)),
        }
    if fitted.decode_first is not None:
        decode_first, sizes = fitted.decode_first, (2**i for i in range(job.num_bytes.bit_length()))
        figures["rrl_of_first"] = {
            k: rrl(judged_MD, decode_first(codes_MN[:, :k])) for k in sizes if k < job.num_bytes
        }
    _save_codes(job, "test", codes_MN)
    if job.dataset.name != GAUSSIAN:
        figures |= _probed(job, fitted, _drawn(train_MD, job.probe_frames), judged_MD, codes_MN)
    return figures


def _probed(
    job: Job, fitted: Fitted, train_MD: Tensor, test_MD: Tensor, test_codes_MN: Tensor
) -> dict[str, float]:
    train_codes_MN = fitted.encode(train_MD)
    _save_codes(job, "train", train_codes_MN)
    return {
        name: probe_nats(
            train_MD,
            train_codes_MN,
            test_MD,
            test_codes_MN,
            hidden=hidden,
            steps=job.probe_steps,
            seed=job.seed,
        )
        for name, hidden in (("linear_nats", False), ("hidden_nats", True))
    }


def _drawn(x_MD: Tensor, count: int) -> Tensor:
    return x_MD[evenly(count, len(x_MD)).to(x_MD.device)]


def _save_codes(job: Job, split: str, codes_MN: Tensor) -> None:
    path = Path(job.result)
    with written_aside(path.with_name(f"{path.stem}-{split}-codes.npy")) as file:
        np.save(file, codes_MN.to(torch.uint8).cpu().numpy())


if __name__ == "__main__":
    main()
