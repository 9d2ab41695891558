"""Our quantizer beside multi_quantization 0.1.1, in one run on one machine.

    python -m benchmarks.quantizer_step [--embeddings frames.npy] [--checkpoint peer.pt] [--device cuda]

Prints seconds per training step in both phases (steps of the two alternate, medians), and frames per second
and RRL of encoding with the default five iterations on the same codebooks: those of --checkpoint, or of a
short fit of ours. On Gaussian frames, and on --embeddings (M, dim) where given. With --ours-only, and where
multi_quantization is not installed, of ours alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from models.quantizer import Quantizer, QuantizerTrainer, load_reference_checkpoint, rrl


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def find_peer() -> ModuleType | None:
    """multi_quantization, or None where it is not installed."""
    try:
        import multi_quantization
    except ModuleNotFoundError as error:
        if error.name != "multi_quantization":
            raise
        return None
    return multi_quantization


def step_times(
    x: Tensor, codebooks: int, batch: int, steps: int, phase: int, peer: ModuleType | None
) -> list[float]:
    """Median seconds per training step of ours, and of the peer's if there is one; three are left out."""
    first = 1_000_000 if phase == 1 else 1
    arguments = (x.shape[1], codebooks, x.device, first, 1_000_000)
    trainers = [QuantizerTrainer(*arguments, seed=0)]
    if peer is not None:
        trainers.append(peer.QuantizerTrainer(*arguments))
    warm = 3  # the peer logs six losses in its first step; phase two begins after the second
    times: list[list[float]] = [[] for _ in trainers]
    for step in range(warm + steps):
        rows = torch.randint(len(x), (batch,), device=x.device)
        for trainer, own in zip(trainers, times, strict=True):
            took = seconds(lambda trainer=trainer, rows=rows: trainer.step(x[rows]), x.device)
            if step >= warm:
                own.append(took)
    return [statistics.median(own) for own in times]


def short_fit(x: Tensor, codebooks: int) -> Quantizer:
    """Codebooks to encode with where no checkpoint is given."""
    trainer = QuantizerTrainer(x.shape[1], codebooks, x.device, 100, 50, seed=0)
    while not trainer.done():
        trainer.step(x[torch.randint(len(x), (512,), device=x.device)])
    return trainer.get_quantizer()


@torch.no_grad()
def encode_figures(x: Tensor, quantizer: Quantizer, peer: ModuleType | None) -> list[tuple[float, float]]:
    """(frames per second, RRL) of encode with five iterations on the same codebooks: ours, then the peer."""
    encoders = [quantizer]
    if peer is not None:
        theirs = peer.Quantizer(quantizer.dim, quantizer.codebook_size, quantizer.num_codebooks)
        theirs.to(x.device).load_state_dict(quantizer.state_dict())
        encoders.append(theirs)
    figures = []
    for encoder in encoders:
        codes: list[Tensor] = []
        encoder.encode(x[:64])
        # Blocks keep the peer's gathered centers (65,536 bytes times dim for each frame) in memory.
        took = seconds(lambda e=encoder, c=codes: c.extend(e.encode(b, 5) for b in x.split(256)), x.device)
        x_hat = quantizer.decode(torch.cat(codes))
        figures.append((len(x) / took, rrl(x, x_hat, quantizer.get_data_mean())))
    return figures


def report(
    title: str,
    x: Tensor,
    arguments: argparse.Namespace,
    quantizer: Quantizer | None,
    peer: ModuleType | None,
) -> None:
    """Measure on frames (M, dim) and print."""
    print(f"\n{title}: {len(x)} frames of {x.shape[1]}")
    print(f"  {arguments.codebooks} codebooks of 256, batches of {arguments.batch}")
    for phase in (1, 2):
        ours_s, *rest = step_times(x, arguments.codebooks, arguments.batch, arguments.steps, phase, peer)
        beside = "".join(f", peer {theirs_s:.4f} s, ratio {theirs_s / ours_s:.1f}" for theirs_s in rest)
        print(f"  training step, phase {phase}: ours {ours_s:.4f} s{beside}")
    quantizer = quantizer or short_fit(x, arguments.codebooks)
    (ours, ours_rrl), *others = encode_figures(x[: arguments.frames], quantizer, peer)
    beside = "".join(f", peer {theirs:.0f} frames/s, ratio {ours / theirs:.1f}" for theirs, _ in others)
    print(f"  encode: ours {ours:.0f} frames/s{beside}")
    beside = "".join(f", peer {theirs_rrl:.4f}" for _, theirs_rrl in others)
    print(f"  RRL on the same codebooks: ours {ours_rrl:.4f}{beside}", flush=True)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=512, help="of the Gaussian frames")
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5, help="timed training steps per phase")
    parser.add_argument("--frames", type=int, default=1024, help="frames encoded")
    parser.add_argument("--embeddings", type=Path, help=".npy file of (M, dim)")
    parser.add_argument("--checkpoint", type=Path, help="a peer's checkpoint for --embeddings")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ours-only", action="store_true", help="leave multi_quantization out")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    peer = None if arguments.ours_only else find_peer()
    if peer is None and not arguments.ours_only:
        print(
            "multi_quantization is not installed, so only ours is measured; for the comparison, "
            "pip install multi-quantization==0.1.1"
        )
    gaussian = torch.randn(8192, arguments.dim, device=arguments.device)
    report("Gaussian", gaussian, arguments, None, peer)
    if arguments.embeddings is not None:
        array = np.load(arguments.embeddings, allow_pickle=False).astype(np.float32)
        frames = torch.from_numpy(array)[torch.randperm(len(array))].to(arguments.device)
        known = load_reference_checkpoint(arguments.checkpoint) if arguments.checkpoint else None
        known = known.to(arguments.device) if known else None
        report(str(arguments.embeddings), frames, arguments, known, peer)


if __name__ == "__main__":
    main()
