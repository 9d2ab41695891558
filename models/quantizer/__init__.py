"""Direct-sum quantizers: codes for embeddings, and how they are fitted."""

from models.quantizer.arrays import load_reference_checkpoint, quantizer_from_arrays, quantizer_to_arrays
from models.quantizer.fit import fit_quantizer
from models.quantizer.fit_config import FitConfig, FitProgress, FitResult
from models.quantizer.metrics import rrl, usage_entropy_bits
from models.quantizer.quantizer import Quantizer
from models.quantizer.trainer import QuantizerTrainer

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
