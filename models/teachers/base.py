"""What a teacher is: its description, its protocol, and what all teachers share.

Shape suffixes: B utterances, T frames, F frames of all utterances, D embedding dimension.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from mvqkd.models.precision import full_float32_products
from mvqkd.models.teachers import norms
from mvqkd.models.teachers.batch import Audio, EmbeddedBatch, gather_audio, join_batch
from mvqkd.models.teachers.errors import (
    NonFiniteEmbeddingError,
    UtteranceTooLongError,
    UtteranceTooShortError,
    WaveformError,
)

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
        """Description of the loaded teacher, at its highest layer."""
        ...

    def info_at(self, layer: int) -> TeacherInfo:
        """Description of the same teacher loaded at one of its layers; see :meth:`TransformersTeacher.info_at`."""
        ...

    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Embed mono float32 waveforms ``(num_samples,)``; see :meth:`TransformersTeacher.encode`."""
        ...

    def encode_layers(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """The same at several layers; see :meth:`TransformersTeacher.encode_layers`."""
        ...

    def embed_batch(self, waveforms: Sequence[Tensor], layers: Sequence[int] | None = None) -> EmbeddedBatch:
        """The same without waiting for the device; see :meth:`TransformersTeacher.embed_batch`."""
        ...

    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives; 0 when it is too short."""
        ...


class TransformersTeacher(ABC):
    """Checks, precision and error handling around a transformers encoder; subclasses do the computation.

    Args:
        model: the encoder up to the highest layer.
        infos: of every layer that can be asked for.
        device: where to compute.
    """

    def __init__(
        self, *, model: "PreTrainedModel", infos: Mapping[int, TeacherInfo], device: torch.device
    ) -> None:
        self._infos = dict(infos)
        self._info = self._infos[max(self._infos)]
        cast_weights(model, DTYPES[self._info.dtype], convolutions=device.type != "cpu")
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device

    @property
    def info(self) -> TeacherInfo:
        """Description of the loaded teacher, at its highest layer."""
        return self._info

    def info_at(self, layer: int) -> TeacherInfo:
        """Description of the same teacher loaded at a layer, its fingerprint included.

        Raises:
            ValueError: the teacher was not loaded for this layer.
        """
        if layer not in self._infos:
            raise ValueError(
                f"layer {layer} is not among the layers {sorted(self._infos)} that teacher {self._info.name} was "
                "loaded for: name it in load_teacher(layers=...)"
            )
        return self._infos[layer]

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Number of frames T that a waveform of ``num_samples`` samples gives; 0 when it is too short."""

    @abstractmethod
    def _states(self, audio: Audio, layers: Sequence[int]) -> list[Tensor]:
        """The state after each of the layers, ``(B, T, dim)``; the first frames of a row are its utterance's."""

    def encode(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Embed waveforms; one result per input, in order, whatever else is in the list.

        Args:
            waveforms: mono float32 ``(num_samples,)`` at ``info.sample_rate_hz``, on any device.

        Returns:
            One float32 tensor ``(T_i, dim)`` per waveform, on the teacher's device, where the quantizer reads
            it next; ``T_i == num_frames(num_samples_i)``. They share one piece of memory: clone what is kept.

        Raises:
            UtteranceTooShortError, UtteranceTooLongError: a waveform outside ``info.min_samples`` and
                ``info.max_samples``; nothing has been computed.
            WaveformError: a waveform that is not a finite one-dimensional float32 tensor; as above.
            NonFiniteEmbeddingError: NaN or infinity in some embeddings; it carries the others.
        """
        return self.encode_layers(waveforms, [self._info.layer])[0]

    def encode_layers(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """Embed waveforms at several layers in one pass.

        Args:
            waveforms: as of ``encode``.
            layers: of those that the teacher was loaded for.

        Returns:
            For each layer, in the order given, what ``encode`` of the teacher loaded at that layer returns.

        Raises:
            ValueError: the teacher was not loaded for one of the layers, or none is given.
            WaveformError, NonFiniteEmbeddingError: as of ``encode``; an utterance is non-finite in any layer.
        """
        if not waveforms:
            return [[] for _ in self._checked(layers)]
        for index, waveform in enumerate(waveforms):
            if isinstance(waveform, Tensor) and waveform.device.type != "cpu":
                self._check_finite(index, waveform)
        batch = self.embed_batch(waveforms, layers)
        embeddings = [list(x_FD.split(batch.lengths)) for x_FD in batch.frames]
        finite: list[bool] = batch.finite_B.tolist()
        if not all(finite):
            left = [
                [x_TD if good else None for x_TD, good in zip(each, finite, strict=True)]
                for each in embeddings
            ]
            raise NonFiniteEmbeddingError(
                indexes=tuple(i for i, good in enumerate(finite) if not good),
                embeddings=left[0],
                dtype=self._info.dtype,
                layers=left,
            )
        return embeddings

    def embed_batch(self, waveforms: Sequence[Tensor], layers: Sequence[int] | None = None) -> EmbeddedBatch:
        """Queue the embedding of waveforms; on CUDA the host does not wait for it, and other work can follow.

        Args:
            waveforms: as of ``encode``, at least one. Those on the host are checked there; of those on a device the
                numbers are not looked at, and NaN or infinity in them shows in ``finite_B``.
            layers: of those that the teacher was loaded for; the highest by default.

        Raises:
            ValueError: no waveforms, or the teacher was not loaded for one of the layers.
            WaveformError: as of ``encode``; nothing has been computed.
        """
        layers = self._checked([self._info.layer] if layers is None else layers)
        if not waveforms:
            raise ValueError("there is no waveform to embed: give at least one")
        for index, waveform in enumerate(waveforms):
            self._check(index, waveform)
        with torch.inference_mode(), self._precision():
            audio = gather_audio(waveforms, self._device, multiple=self._info.frame_shift_samples)
            states = self._states(audio, layers)
        lengths = [self.num_frames(length) for length in audio.lengths]
        # Outside inference mode: a quantizer can be trained on these, and the padded states are let go.
        with torch.no_grad():
            return join_batch(states, lengths, layers=layers, device=self._device)

    def _checked(self, layers: Sequence[int]) -> list[int]:
        if not layers:
            raise ValueError(f"no layer is given: name some of {sorted(self._infos)}")
        return [self.info_at(layer).layer for layer in layers]

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
        if waveform.device.type == "cpu":
            self._check_finite(index, waveform)

    def _check_finite(self, index: int, waveform: Tensor) -> None:
        # The sum tells in a single pass; only where it is not finite each sample is looked at.
        if not math.isfinite(float(waveform.sum())) and not bool(waveform.isfinite().all()):
            raise WaveformError(f"waveform {index} holds NaN or infinity: check its audio file", index=index)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        # TF32 would make "float32" embeddings depend on which kernel a batch's shape selects.
        flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        dtype = DTYPES[self._info.dtype]
        autocast = torch.autocast(self._device.type, dtype=dtype, enabled=dtype != torch.float32)
        with flags, full_float32_products(), autocast:
            yield

    def _prepare_layers(self, layers: nn.ModuleList, *, norm_first: bool, compile: bool) -> None:
        """Make transformer layers fast on the device, in place.

        Args:
            norm_first: whether what their layer norms give is read by attention and feed-forward alone.
            compile: run them through torch.compile when they are called: one graph for all, and for batches of all
                shapes.
        """
        if compile:
            for layer in layers:
                layer.compile(dynamic=True)
        elif norm_first and self._info.dtype != "float32" and self._device.type in norms.PRODUCT_NORMS:
            norms.use_product_norms(layers, self._device, DTYPES[self._info.dtype])

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
