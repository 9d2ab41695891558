"""What a teacher is: its description, its protocol, its errors, and what all teachers share.

Shape suffixes: B utterances, T frames, D embedding dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from mvqkd.models.precision import full_float32_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """Facts about a loaded teacher that an index table has to record.

    ``frame_offset_s`` is the time of the center of frame 0's receptive field, so frame ``t`` stands for the
    moment ``frame_offset_s + t / frame_rate_hz``. ``layer`` is the number of transformer layers computed
    of the checkpoint's ``num_layers``. ``fingerprint`` identifies the embedding function: 16 hexadecimal
    characters over weights, configuration, layer, dtype, normalization and window. ``max_samples`` is None
    for teachers without a limit.
    """

    name: str
    architecture: str
    sample_rate_hz: int
    frame_rate_hz: float
    frame_shift_samples: int
    frame_offset_s: float
    dim: int
    layer: int
    num_layers: int
    dtype: str
    fingerprint: str
    min_samples: int
    max_samples: int | None


class Teacher(Protocol):
    """Turns waveforms into embeddings; loaded once, one result per input, in order."""

    @property
    def info(self) -> TeacherInfo:
        """Description of the loaded teacher."""
        ...

    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Embed mono float32 waveforms ``(num_samples,)``; see :meth:`TransformersTeacher.encode`."""
        ...

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives; 0 when it is too short."""
        ...


class WaveformError(ValueError):
    """A waveform that cannot be embedded; ``index`` is its position in the list given to ``encode``."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class UtteranceTooShortError(WaveformError):
    """A waveform with fewer than ``info.min_samples`` samples."""


class UtteranceTooLongError(WaveformError):
    """A waveform with more than ``info.max_samples`` samples."""


class NonFiniteEmbeddingError(ValueError):
    """The teacher made NaN or infinity out of finite audio.

    ``indexes`` names those inputs; ``embeddings`` has one entry per input in order, None for those in
    ``indexes``, so that the caller can leave them out and keep the others without computing them again.
    """

    def __init__(self, *, indexes: tuple[int, ...], embeddings: list[Tensor | None], dtype: str) -> None:
        remedy = (
            "leave them out" if dtype == "float32" else f"load the teacher with dtype float32, not {dtype}"
        )
        super().__init__(
            f"the teacher's embeddings of waveforms {list(indexes)} hold NaN or infinity: {remedy}"
        )
        self.indexes = indexes
        self.embeddings = embeddings


class TransformersTeacher(ABC):
    """Checks, precision and error handling around a transformers encoder; subclasses do the computation."""

    def __init__(self, *, model: "PreTrainedModel", info: TeacherInfo, device: torch.device) -> None:
        cast_weights(model, DTYPES[info.dtype], convolutions=device.type != "cpu")
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device
        self._info = info

    @property
    def info(self) -> TeacherInfo:
        """Description of the loaded teacher."""
        return self._info

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives; 0 when it is too short."""

    @abstractmethod
    def _embed(self, waveforms: list[Tensor]) -> list[Tensor]:
        """Embed checked waveforms ``(num_samples,)`` on the teacher's device, each to ``(T_i, dim)``."""

    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Embed waveforms; one result per input, in order, whatever else is in the list.

        Args:
            waveforms: mono float32 ``(num_samples,)`` at ``info.sample_rate_hz``, on any device.

        Returns:
            One float32 tensor ``(T_i, dim)`` per waveform, on the teacher's device, where the quantizer reads
            it next; ``T_i == num_frames(num_samples_i)``.

        Raises:
            UtteranceTooShortError, UtteranceTooLongError: a waveform outside ``info.min_samples`` and
                ``info.max_samples``; nothing has been computed.
            WaveformError: a waveform that is not a finite one-dimensional float32 tensor; as above.
            NonFiniteEmbeddingError: NaN or infinity in some embeddings; it carries the others.
        """
        for index, waveform in enumerate(waveforms):
            self._check(index, waveform)
        if not waveforms:
            return []
        with torch.inference_mode(), self._precision():
            embeddings_TD = [x.float() for x in self._embed([w.to(self._device) for w in waveforms])]
            finite: list[bool] = torch.stack([x.isfinite().all() for x in embeddings_TD]).tolist()
        # Cloned outside inference mode: a quantizer can be trained on them, and the padded batch is let go.
        embeddings_TD = [x.clone() for x in embeddings_TD]
        if not all(finite):
            raise NonFiniteEmbeddingError(
                indexes=tuple(i for i, good in enumerate(finite) if not good),
                embeddings=[x if good else None for x, good in zip(embeddings_TD, finite, strict=True)],
                dtype=self._info.dtype,
            )
        return embeddings_TD

    def _check(self, index: int, waveform: Tensor) -> None:
        info = self._info
        if not isinstance(waveform, Tensor) or waveform.ndim != 1 or waveform.dtype != torch.float32:
            is_tensor = isinstance(waveform, Tensor)
            found = f"{waveform.dtype} {tuple(waveform.shape)}" if is_tensor else type(waveform).__name__
            raise WaveformError(
                f"waveform {index} is {found}: give a mono float32 tensor of shape (num_samples,)",
                index=index,
            )
        num_samples = waveform.numel()
        if num_samples < info.min_samples:
            raise UtteranceTooShortError(
                f"waveform {index} has {num_samples} samples, fewer than the {info.min_samples} samples"
                f" ({info.min_samples / info.sample_rate_hz:.4f} s) that one frame takes: leave it out",
                index=index,
            )
        if info.max_samples is not None and num_samples > info.max_samples:
            raise UtteranceTooLongError(
                f"waveform {index} has {num_samples} samples ({num_samples / info.sample_rate_hz:.2f} s),"
                f" more than the {info.max_samples / info.sample_rate_hz:g} s the teacher takes: cut it",
                index=index,
            )
        if not bool(waveform.isfinite().all()):
            raise WaveformError(f"waveform {index} holds NaN or infinity: check its audio file", index=index)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        # TF32 would make "float32" embeddings depend on which kernel a batch's shape selects.
        flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        dtype = DTYPES[self._info.dtype]
        autocast = torch.autocast(self._device.type, dtype=dtype, enabled=dtype != torch.float32)
        with flags, full_float32_products(), autocast:
            yield

    def _convolutions(self) -> AbstractContextManager[None]:
        """Around convolutions: on the CPU they are computed in float32, whatever the dtype of the teacher.

        On CPUs with AMX some shapes come out wrong in bfloat16, without an error: of a grouped convolution with 32
        channels and 16 taps, as far off as noise (torch 2.14.1; pytorch issue 169688 has another shape).
        """
        if self._device.type != "cpu":
            return nullcontext()
        return torch.autocast("cpu", enabled=False)


def cast_weights(model: nn.Module, dtype: torch.dtype, *, convolutions: bool = True) -> None:
    """Cast the weights of matrix products to ``dtype``, in place; norms and embeddings stay float32.

    Under autocast the residual stream then stays float32 too, which large models need: its values outgrow
    float16. Without ``convolutions`` theirs stay float32 too.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) or (convolutions and isinstance(module, nn.Conv1d)):
            module.to(dtype)


def pad_frames(frames: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stack ``(T_i, D)`` tensors to zero-padded ``(B, T, D)`` with a mask ``(B, T)``, True at real frames.

    The mask is None when nothing is padded: unmasked attention is faster.
    """
    lengths = [x.shape[0] for x in frames]
    x_BTD = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    if min(lengths) == max(lengths):
        return x_BTD, None
    lengths_B1 = torch.tensor(lengths, device=x_BTD.device)[:, None]
    return x_BTD, torch.arange(x_BTD.shape[1], device=x_BTD.device) < lengths_B1
