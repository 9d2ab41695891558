"""Whisper's short windows against its exact 30-second windows: speed and deviation, layer by layer.

python -m benchmarks.whisper_window --teacher FOLDER --audio FOLDER [--utterances 40] [--json]

The audio is .flac and .wav files, read by soundfile, or .npy files of one waveform each (num_samples,) at the
teacher's rate, for machines without soundfile.
"""

# Shape suffixes: T frames, D embedding dimension.

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mvqkd.models.teachers import Teacher, load_teacher


def read_waveforms(folder: Path, count: int) -> list[Tensor]:
    """``count`` utterances ``(num_samples,)`` spread over a folder of audio, longest first.

    Raises:
        ValueError: there is no audio, or an array is no waveform.
        ModuleNotFoundError: soundfile is needed and not installed.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".flac", ".wav", ".npy"))
    if not files:
        raise ValueError(f"no .flac, .wav or .npy files in {folder}: give a folder of audio")
    step = max(1, len(files) // count)
    return sorted((read_waveform(file) for file in files[::step][:count]), key=len, reverse=True)


def read_waveform(file: Path) -> Tensor:
    """float32 ``(num_samples,)``; raises as `read_waveforms` does."""
    if file.suffix == ".npy":
        array = np.load(file, allow_pickle=False)
        if array.ndim != 1 or array.dtype.kind != "f":
            raise ValueError(f"{file} holds {array.dtype} {array.shape}: give floats of shape (num_samples,)")
        return torch.from_numpy(array.astype(np.float32))
    try:
        import soundfile  # here, as it is not on every machine with a GPU
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file} takes soundfile to read: pip install soundfile, or give .npy files of waveforms"
        ) from error
    return torch.from_numpy(soundfile.read(file, dtype="float32")[0])


def encode_all(teacher: Teacher, waveforms: list[Tensor], batch_size: int) -> tuple[list[Tensor], float]:
    """Embeddings ``(T, dim)`` of all waveforms and frames per second, warmed up by the shortest one.

    On the CPU the seconds are those of processor time, all threads together: others may use the machine.
    """
    encoded = teacher.encode(waveforms[-1:])
    clock = time.process_time if encoded[0].device.type == "cpu" else time.perf_counter
    start_s = clock()
    batches = [waveforms[i : i + batch_size] for i in range(0, len(waveforms), batch_size)]
    embeddings = [x_TD.cpu() for batch in batches for x_TD in teacher.encode(batch)]
    return embeddings, sum(map(len, embeddings)) / (clock() - start_s)


def deviation(short: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Squared deviation over the exact embeddings' variance: of all frames, and of the median frame."""
    exact_TD = torch.cat(exact)
    squares_T = (torch.cat(short) - exact_TD).square().sum(dim=1)
    variance_T = (exact_TD - exact_TD.mean(dim=0)).square().sum(dim=1)
    return float(squares_T.sum() / variance_T.sum()), float(squares_T.median() / variance_T.median())


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--utterances", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--layers", type=int, nargs="+", help="default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    waveforms = read_waveforms(arguments.audio, arguments.utterances)
    num_layers = load_teacher(arguments.teacher).info.num_layers
    rows = []
    for layer in arguments.layers or range(1, num_layers + 1):
        row: dict[str, float] = {"layer": layer}
        embeddings = {}
        for window in ("short", "exact"):
            teacher = load_teacher(
                arguments.teacher, layer=layer, whisper_window=window, device=arguments.device
            )
            embeddings[window], row[f"{window}_frames_per_s"] = encode_all(
                teacher, waveforms, arguments.batch_size
            )
        row["speed_ratio"] = row["short_frames_per_s"] / row["exact_frames_per_s"]
        row["relative_deviation"], row["median_frame_deviation"] = deviation(
            embeddings["short"], embeddings["exact"]
        )
        rows.append(row)
    frames = sum(map(len, embeddings["exact"]))
    if arguments.json:
        print(json.dumps({"utterances": len(waveforms), "frames": frames, "layers": rows}))
        return
    print(f"{len(waveforms)} utterances, {frames} frames, {torch.get_num_threads()} threads")
    print("layer  short frames/s  exact frames/s  ratio  relative deviation  median frame")
    for row in rows:
        print(
            f"{row['layer']:5d}  {row['short_frames_per_s']:14.0f}  {row['exact_frames_per_s']:14.0f}"
            f"  {row['speed_ratio']:5.1f}  {row['relative_deviation']:18.4f}"
            f"  {row['median_frame_deviation']:12.4f}"
        )


if __name__ == "__main__":
    main()
