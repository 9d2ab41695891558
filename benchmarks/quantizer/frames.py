"""The frames that quantizers are fitted to and judged on: given as .npy files, or Gaussian.

Shape suffixes: M frames, D embedding dimension.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GAUSSIAN = "gaussian"
GAUSSIAN_DIM = 64
GAUSSIAN_TRAIN_FRAMES = 40_000
GAUSSIAN_TEST_FRAMES = 8_000
_GAUSSIAN_SEED = 20_221_031
_ROWS_PER_BLOCK = 8192


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Train and test frames by name, so that a process can be told in a line which to load.

    `train` and `test` are .npy files, empty for the Gaussian; `digest` is of the frames themselves.
    """

    name: str
    digest: str
    dim: int
    train_frames: int
    test_frames: int
    train: str = ""
    test: str = ""

    def load(self) -> tuple[Tensor, Tensor]:
        """Train frames (M, D) and test frames (V, D), float32, on the CPU."""
        if self.name == GAUSSIAN:
            generator = torch.Generator().manual_seed(_GAUSSIAN_SEED)
            both_MD = torch.randn(self.train_frames + self.test_frames, self.dim, generator=generator)
            return both_MD[: self.train_frames], both_MD[self.train_frames :]
        return _load(self.train, self.train_frames), _load(self.test, self.test_frames)


def gaussian_dataset() -> Dataset:
    """Independent components of unit variance: how well they can be coded at all is known."""
    sizes = (GAUSSIAN_DIM, GAUSSIAN_TRAIN_FRAMES, GAUSSIAN_TEST_FRAMES)
    return Dataset(
        name=GAUSSIAN,
        digest="-".join(map(str, (*sizes, _GAUSSIAN_SEED))),
        dim=GAUSSIAN_DIM,
        train_frames=GAUSSIAN_TRAIN_FRAMES,
        test_frames=GAUSSIAN_TEST_FRAMES,
    )


def dataset_of_files(train: Path, test: Path, max_train_frames: int | None) -> Dataset:
    """Frames (M, D) of two .npy files, the train frames drawn evenly where there are too many.

    Raises:
        ValueError: a file holds something else, or the two differ in their dimension.
        FileNotFoundError: there is no such file.
    """
    sizes = [_checked(path) for path in (train, test)]
    (train_frames, dim), (test_frames, test_dim) = sizes
    if dim != test_dim:
        raise ValueError(f"{train} has {dim} channels, {test} {test_dim}: give frames of one teacher")
    train_frames = min(train_frames, max_train_frames or train_frames)
    digest = hashlib.sha256(f"{train_frames} {test_frames}".encode())
    for path in (train, test):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Dataset(
        name="embeddings",
        digest=digest.hexdigest()[:16],
        dim=dim,
        train_frames=train_frames,
        test_frames=test_frames,
        train=str(train),
        test=str(test),
    )


def evenly(count: int, total: int) -> Tensor:
    """At most `count` of `total` rows, at equal distances."""
    count = min(count, total)
    return torch.arange(count) * total // count


def shannon_rrl(num_bytes: int, dim: int) -> float:
    """The lowest RRL that any code of so many bytes a frame reaches on Gaussian frames: 2^(-2 R / D)."""
    return 2.0 ** (-2 * 8 * num_bytes / dim)


def _load(path: str, count: int) -> Tensor:
    array = np.load(path, allow_pickle=False)
    if count < len(array):
        array = array[evenly(count, len(array)).numpy()]
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _checked(path: Path) -> tuple[int, int]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is no array of numbers ({error}); write it with numpy.save(path, frames)"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or array.size == 0:
        shown = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise ValueError(f"{path} holds {shown}; give one array of floats (frames, dim)")
    for first in range(0, len(array), _ROWS_PER_BLOCK):
        if not np.isfinite(array[first : first + _ROWS_PER_BLOCK]).all():
            raise ValueError(f"{path} holds NaN or infinity; leave those frames out")
    return array.shape
