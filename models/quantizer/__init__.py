"""Direct-sum quantizers: codes for embeddings, and how they are fitted."""

from models.quantizer.arrays import load_reference_checkpoint, quantizer_from_arrays, quantizer_to_arrays
from models.quantizer.metrics import rrl, usage_entropy_bits
from models.quantizer.quantizer import Quantizer

__all__ = [
    "Quantizer",
    "load_reference_checkpoint",
    "quantizer_from_arrays",
    "quantizer_to_arrays",
    "rrl",
    "usage_entropy_bits",
]
