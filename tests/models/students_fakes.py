"""Students that the tests of the models share; apart from the rest, as students need torchaudio."""

import torch
from torch import nn

from mvqkd.models.students.config import StudentConfig
from mvqkd.models.students.ctc import CtcStudent
from mvqkd.models.students.transducer import ConformerTransducer


class TinyStudent(CtcStudent):
    """A student of one's own."""

    channels = 80

    def __init__(self, num_units):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(80, 80) for _ in range(2))
        self.output = nn.Linear(80, num_units)

    def logits(self, features_BTF, lengths_B):
        x_BTC = features_BTF
        for layer in self.layers:
            x_BTC = x_BTC + layer(x_BTC).relu()
        return self.output(x_BTC), lengths_B


def small_conformer(num_units=6, **changes):
    sizes = {"encoder_dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "conv_kernel": 7}
    sizes |= {"dropout": 0.0, "predictor_dim": 8, "joiner_dim": 16}
    torch.manual_seed(0)
    return ConformerTransducer(StudentConfig(**{**sizes, **changes}), num_units)
