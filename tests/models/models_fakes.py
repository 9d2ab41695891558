"""What the tests of the models share."""

import torch

from mvqkd.models.quantizer import Quantizer


def seeded(dim, codebook_size, num_codebooks, seed=0):
    torch.manual_seed(seed)
    return Quantizer(dim, codebook_size, num_codebooks).eval()


def squared_error(quantizer, x, codes):
    return (quantizer.decode(codes) - x).square().sum(dim=-1).detach()
