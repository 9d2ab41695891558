"""Reading the output of a student's layers by forward hooks, so that a student need not know of distillation.

Shape suffixes: B utterances, S the student's frames, C channels.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from mvqkd.models.students.base import Student


class Taps:
    """What the tapped layers of a student returned in one forward pass."""

    def __init__(self, student: Student, numbers: Collection[int]) -> None:
        self._student = student
        self._raw: dict[int, list[object]] = {number: [] for number in numbers}

    def __getitem__(self, number: int) -> Tensor:
        """The output (B, S, C) of a layer.

        Raises:
            RuntimeError: the layer did not run exactly once, or its output has no gradient.
        """
        raw = self._raw[number]
        if len(raw) != 1:
            raise RuntimeError(
                f"layer {number} of {type(self._student).__name__} ran {len(raw)} times in one forward pass; it has to "
                "run once: return a module from `layer` that is called for this layer alone"
            )
        output = self._student.layer_output(raw[0])
        if torch.is_grad_enabled() and not output.requires_grad and _is_trained(self._student.layer(number)):
            raise RuntimeError(
                f"the output of layer {number} of {type(self._student).__name__} has no gradient, so nothing would be "
                "distilled into it: run its layers without torch.no_grad"
            )
        return output

    def hook(self, number: int, raw: object) -> None:
        """Keep what a layer returned."""
        self._raw[number].append(raw)

    def clear(self) -> None:
        """Let go of everything."""
        for raw in self._raw.values():
            raw.clear()


@contextmanager
def tapped(student: Student, numbers: Collection[int]) -> Iterator[Taps]:
    """Inside, one forward pass of `student` leaves the outputs of these layers; afterwards nothing is kept.

    The hooks are on the student's own modules and live for this pass alone, so that they are the same however the
    student is wrapped (DistributedDataParallel), and a failed pass leaves none behind.
    """
    taps = Taps(student, numbers)
    with ExitStack() as stack:
        stack.callback(taps.clear)
        for number in numbers:

            def keep(module: nn.Module, inputs: object, output: object, number: int = number) -> None:
                taps.hook(number, output)

            handle = student.layer(number).register_forward_hook(keep)
            stack.callback(handle.remove)
        yield taps


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
