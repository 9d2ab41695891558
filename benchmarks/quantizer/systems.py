"""The systems that are compared."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks.quantizer import systems_faiss, systems_torch
from benchmarks.quantizer.fitting import FitOptions, Fitted


def _anything(dim: int, num_bytes: int) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class System:
    """How a system is fitted, and what it takes.

    Attributes:
        fit: train frames (M, D) on the device of the options to a fitted system.
        module: the module that must be there, and `install` what to give to pip for it.
        refuses: why it cannot code frames of `dim` channels in `num_bytes` bytes; None where it can.
        cpu_only: whatever device the others run on.
    """

    fit: Callable[[Tensor, FitOptions], Fitted]
    module: str | None = None
    install: str = ""
    refuses: Callable[[int, int], str | None] = _anything
    cpu_only: bool = False

    def missing(self) -> str | None:
        """What to install for it; None where it is there."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return None
        return f"{self.module} is not installed: pip install {self.install}"


def _faiss(
    fit: Callable[[Tensor, FitOptions], Fitted], refuses: Callable[[int, int], str | None] = _anything
) -> System:
    return System(fit=fit, module="faiss", install="faiss-cpu", refuses=refuses, cpu_only=True)


SYSTEMS: dict[str, System] = {
    "ours": System(fit=partial(systems_torch.fit_ours, ordered=False)),
    "ours-ordered": System(fit=partial(systems_torch.fit_ours, ordered=True)),
    "ours-paper": System(fit=systems_torch.fit_ours_paper),
    "multi_quantization": System(
        fit=systems_torch.fit_peer,
        module="multi_quantization",
        install="multi-quantization==0.1.1",
        refuses=systems_torch.peer_refuses,
    ),
    "faiss-pq": _faiss(systems_faiss.fit_pq, systems_faiss.product_refuses),
    "faiss-opq": _faiss(systems_faiss.fit_opq, systems_faiss.product_refuses),
    "faiss-rq": _faiss(systems_faiss.fit_rq),
    "faiss-lsq": _faiss(systems_faiss.fit_lsq),
}
