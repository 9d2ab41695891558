"""A batch on its way through a teacher: audio in one piece of memory, padded frames, embeddings of all utterances.

No function here makes the host wait for a CUDA device.

Shape suffixes: B utterances, S samples, T frames of an utterance, F frames of all, D channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EmbeddedBatch:
    """The embeddings of a batch, on the teacher's device, where the work that makes them may still be under way.

    Attributes:
        layers: the layers that were asked for.
        frames: for each of them float32 (F, D), utterance after utterance without padding.
        lengths: frames of each utterance, on the host.
        lengths_B: the same as int64 on the device.
        finite_B: on the device; whether all numbers of an utterance's embeddings, in all the layers, are finite.
    """

    layers: tuple[int, ...]
    frames: tuple[Tensor, ...]
    lengths: tuple[int, ...]
    lengths_B: Tensor
    finite_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Audio:
    """Waveforms one after the other in one piece of memory on the teacher's device, zeros between them.

    Attributes:
        samples_S: all of them.
        starts: where each begins, multiples of a number of samples that the teacher chose.
        lengths: samples of each.
    """

    samples_S: Tensor
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    def waveforms(self) -> list[Tensor]:
        """The waveforms ``(num_samples,)``, views of the samples."""
        ends = zip(self.starts, self.lengths, strict=True)
        return [self.samples_S[start : start + length] for start, length in ends]


def gather_audio(waveforms: Sequence[Tensor], device: torch.device, *, multiple: int) -> Audio:
    """Waveforms ``(num_samples,)`` to a device, in one copy of pinned memory where they come from the host."""
    lengths = [len(waveform) for waveform in waveforms]
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += math.ceil(length / multiple) * multiple
    from_host = all(waveform.device.type == "cpu" for waveform in waveforms)
    pinned = from_host and device.type == "cuda"
    samples_S = torch.zeros(
        total, dtype=waveforms[0].dtype, device="cpu" if from_host else device, pin_memory=pinned
    )
    for start, waveform in zip(starts, waveforms, strict=True):
        samples_S[start : start + len(waveform)] = waveform
    return Audio(
        samples_S=samples_S.to(device, non_blocking=pinned), starts=tuple(starts), lengths=tuple(lengths)
    )


def numbers_on(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 numbers on a device."""
    if device.type != "cuda":
        return torch.tensor(numbers, device=device)
    # Out of memory that is not pinned the copy would wait for the device.
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)


def pad_frames(frames: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stack ``(T_i, D)`` tensors to zero-padded ``(B, T, D)`` with a mask ``(B, T)``, True at real frames.

    The mask is None when nothing is padded: unmasked attention is faster.
    """
    lengths = [x.shape[0] for x in frames]
    x_BTD = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    return x_BTD, keep_mask(lengths, x_BTD.shape[1], x_BTD.device)


def keep_mask(lengths: Sequence[int], longest: int, device: torch.device) -> Tensor | None:
    """(B, T), True at the first ``lengths`` frames of ``longest``; None where that is all of them."""
    if min(lengths) == longest:
        return None
    return torch.arange(longest, device=device) < numbers_on(lengths, device)[:, None]


def states_after(
    layers: Sequence[int],
    modules: Sequence[nn.Module],
    x_BTD: Tensor,
    step: Callable[[nn.Module, Tensor], Tensor],
) -> list[Tensor]:
    """Run the modules, as far as they are needed, and keep the states after some of them, counted from 1.

    Args:
        layers: which to keep, in the order of the result.
        step: a module and the state before it to the state after it.
    """
    states: dict[int, Tensor] = {}
    for number, module in enumerate(modules[: max(layers)], start=1):
        x_BTD = step(module, x_BTD)
        if number in layers:
            states[number] = x_BTD
    return [states[layer] for layer in layers]


def join_batch(
    states: Sequence[Tensor], lengths: Sequence[int], *, layers: Sequence[int], device: torch.device
) -> EmbeddedBatch:
    """Embeddings out of the padded states (B, T, D) of each layer, of which the first frames are an utterance's."""
    keep_BT = keep_mask(lengths, states[0].shape[1], device)
    frames = []
    finite_B = torch.ones(len(lengths), dtype=torch.bool, device=device)
    for x_BTD in states:
        finite_BT = x_BTD.isfinite().all(dim=2)
        finite_B &= (finite_BT if keep_BT is None else finite_BT | ~keep_BT).all(dim=1)
        frames.append(torch.cat([x_TD[:n] for x_TD, n in zip(x_BTD, lengths, strict=True)]).float())
    return EmbeddedBatch(
        layers=tuple(layers),
        frames=tuple(frames),
        lengths=tuple(lengths),
        lengths_B=numbers_on(lengths, device),
        finite_B=finite_B,
    )
