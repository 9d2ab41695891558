"""Direct-sum quantizers: codes for embeddings, and how they are fitted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mvqkd.models.quantizer.fit_config import FitConfig, FitProgress, FitSettings

if TYPE_CHECKING:
    from mvqkd.models.quantizer.coder import Coder
    from mvqkd.models.quantizer.fit import FitResult, fit_quantizer
    from mvqkd.models.quantizer.metrics import rrl, rrl_of_each, usage_entropy_bits
    from mvqkd.models.quantizer.paper import QuantizerTrainer
    from mvqkd.models.quantizer.quantizer import Quantizer
    from mvqkd.models.quantizer.search.effort import SEARCHES
    from mvqkd.models.quantizer.serialize import (
        load_reference_checkpoint,
        quantizer_from_arrays,
        quantizer_to_arrays,
    )

__all__ = [
    "SEARCHES",
    "Coder",
    "FitConfig",
    "FitProgress",
    "FitResult",
    "FitSettings",
    "Quantizer",
    "QuantizerTrainer",
    "fit_quantizer",
    "load_reference_checkpoint",
    "quantizer_from_arrays",
    "quantizer_to_arrays",
    "rrl",
    "rrl_of_each",
    "usage_entropy_bits",
]

_MODULES = {
    "SEARCHES": "search.effort",
    "Coder": "coder",
    "FitResult": "fit",
    "Quantizer": "quantizer",
    "QuantizerTrainer": "paper",
    "fit_quantizer": "fit",
    "load_reference_checkpoint": "serialize",
    "quantizer_from_arrays": "serialize",
    "quantizer_to_arrays": "serialize",
    "rrl": "metrics",
    "rrl_of_each": "metrics",
    "usage_entropy_bits": "metrics",
}


def __getattr__(name: str) -> Any:
    """What needs torch, on demand: a run file is checked with the fit's settings alone."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
