"""What a fit starts from and what it is resumed from: the frames' normalization, and its state as named tensors.

Shape suffixes: M frames in all, D embedding dimension.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mvqkd.models.quantizer.derive import folded_scale
from mvqkd.models.quantizer.fit_config import FitProgress
from mvqkd.models.quantizer.quantizer import Quantizer

_ROWS_PER_BLOCK = 65536


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Frames are shifted by their mean and divided by one number for all channels."""

    mean_D: Tensor
    scale: float

    @staticmethod
    def of(data_MD: Tensor) -> "Normalization":
        """The mean frame (float32) and the root mean square distance from it per dimension.

        Raises:
            ValueError: all frames are equal, or their distances overflow.
        """
        blocks = data_MD.split(_ROWS_PER_BLOCK)
        mean_D = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / len(data_MD)
        square = sum(float((block.double() - mean_D).square().sum()) for block in blocks)
        if square == 0:
            raise ValueError("all frames of data are equal; there is nothing to fit")
        return Normalization(mean_D=mean_D.float(), scale=(square / data_MD.numel()) ** 0.5)

    def to(self, device: torch.device) -> "Normalization":
        """The same on a device."""
        return Normalization(mean_D=self.mean_D.to(device), scale=self.scale)

    def __call__(self, rows: Tensor) -> Tensor:
        """Frames (*, D) on any device to float32 on this one."""
        return (rows.to(self.mean_D.device, torch.float32) - self.mean_D) / self.scale

    def folded(self, quantizer: Quantizer) -> Quantizer:
        """The quantizer for frames as they are that does what `quantizer` does for normalized ones."""
        return Quantizer.of_weights(
            folded_scale(quantizer.parameter_tensors(), self.mean_D, self.scale),
            logprob_weight=quantizer.logprob_weight * self.scale**2,
            prefix_weights=quantizer.prefix_weights,
        ).eval()


@dataclass(frozen=True, kw_only=True)
class FitState:
    """A fit that was interrupted.

    Attributes:
        method: the state of the way of fitting, which is called `name`.
        identity: sizes and settings that make a fit this fit.
        history: the measurements so far.
        elapsed_s: the time so far.
    """

    name: str
    method: dict[str, Tensor]
    identity: Tensor
    normalization: Normalization
    history: list[FitProgress]
    elapsed_s: float

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat names and tensors only, for a file of tensors."""
        return {
            **{f"{self.name}.{name}": tensor for name, tensor in self.method.items()},
            "identity": self.identity,
            "history": _packed(self.history, self.elapsed_s),
            "mean": self.normalization.mean_D.cpu(),
            "scale": torch.tensor(self.normalization.scale, dtype=torch.float64),
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], *, name: str, identity: Tensor) -> "FitState":
        """What `to_tensors` gave.

        Raises:
            ValueError: they are of another fit, or not complete.
        """
        complete = {"identity", "history", "mean", "scale"} <= set(tensors)
        if not complete or not torch.equal(tensors["identity"].cpu(), identity):
            raise ValueError(
                "this state is of a fit to other data or with other settings; resume with the same data and "
                "config, or start anew"
            )
        history, elapsed_s = _unpacked(tensors["history"])
        prefix = f"{name}."
        return FitState(
            name=name,
            method={k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)},
            identity=identity,
            normalization=Normalization(mean_D=tensors["mean"], scale=float(tensors["scale"])),
            history=history,
            elapsed_s=elapsed_s,
        )


def _packed(history: list[FitProgress], elapsed_s: float) -> Tensor:
    """The history as one row a measurement, and a last row that only tells the time."""
    rows = [[p.step, p.steps, p.phase, p.train_rrl, p.valid_rrl, p.elapsed_s] for p in history]
    return torch.tensor([*rows, [0, 0, 0, 0.0, 0.0, elapsed_s]], dtype=torch.float64)


def _unpacked(packed: Tensor) -> tuple[list[FitProgress], float]:
    *rows, last = packed.tolist()
    history = [
        FitProgress(
            step=int(step),
            steps=int(steps),
            phase=int(phase),
            train_rrl=train_rrl,
            valid_rrl=valid_rrl,
            elapsed_s=elapsed_s,
        )
        for step, steps, phase, train_rrl, valid_rrl, elapsed_s in rows
    ]
    return history, last[-1]
