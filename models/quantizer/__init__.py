"""Direct-sum quantizers: codes for embeddings, and how they are fitted."""

from mvqkd.models.quantizer.fit import fit_quantizer
from mvqkd.models.quantizer.fit_config import FitConfig, FitProgress, FitResult
from mvqkd.models.quantizer.metrics import rrl, usage_entropy_bits
from mvqkd.models.quantizer.paper import QuantizerTrainer
from mvqkd.models.quantizer.quantizer import Quantizer
from mvqkd.models.quantizer.serialize import (
    load_reference_checkpoint,
    quantizer_from_arrays,
    quantizer_to_arrays,
)

__all__ = [
    "FitConfig",
    "FitProgress",
    "FitResult",
    "Quantizer",
    "QuantizerTrainer",
    "fit_quantizer",
    "load_reference_checkpoint",
    "quantizer_from_arrays",
    "quantizer_to_arrays",
    "rrl",
    "usage_entropy_bits",
]
