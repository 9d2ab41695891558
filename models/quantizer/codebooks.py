"""The weights of a quantizer: codebooks whose entries are summed, and a classifier that guesses a frame's codes.

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvqkd.models.quantizer.derive import SCALE_SPEED
from mvqkd.models.quantizer.packing import unpacked


class Codebooks(nn.Module):
    """N codebooks of K centers each, a linear classifier, an id; names in the state dict are the reference's.

    Parameters are initialised from torch's global generator; the id as well, so a seed fixes both.

    Args:
        dim: embedding dimension.
        codebook_size: entries per codebook, a power of two.
        num_codebooks: any number from 1.

    Raises:
        ValueError: a size is impossible.
    """

    id_buf: Tensor

    def __init__(self, dim: int, codebook_size: int, num_codebooks: int) -> None:
        super().__init__()
        if dim < 1 or num_codebooks < 1:
            raise ValueError(f"dim={dim} and num_codebooks={num_codebooks} must be at least 1")
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            raise ValueError(f"codebook_size={codebook_size} must be a power of two, such as 16 or 256")
        self.dim = dim
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.to_logits = nn.Linear(dim, codebook_size * num_codebooks)
        initial_MD = self.to_logits.weight.detach().clone()
        self.centers = nn.Parameter(initial_MD.view(num_codebooks, codebook_size, dim))
        self.logits_scale = nn.Parameter(torch.zeros(()))
        self.centers_scale = nn.Parameter(torch.zeros(()))
        digits = "0123456789abcdef"
        self.register_buffer(
            "id_buf", _id_tensor("".join(digits[i] for i in torch.randint(16, (8,)).tolist()))
        )

    def get_id(self) -> str:
        """Eight hex digits that name this quantizer, kept in the state dict."""
        return bytes(self.id_buf.tolist()).decode("ascii")

    def set_id_from_weights(self) -> str:
        """Derive the id from the weights and the way of encoding (SHA-256), so that equal ones have equal ids."""
        digest = hashlib.sha256(self._encoding_bytes())
        for name, tensor in sorted(self.named_parameters()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        quantizer_id = digest.hexdigest()[:8]
        self.id_buf.copy_(_id_tensor(quantizer_id))
        return quantizer_id

    def _encoding_bytes(self) -> bytes:
        """What identifies the way of encoding, where there are several."""
        return b""

    def show_init_invocation(self) -> str:
        """The call that builds a quantizer of these sizes, as text."""
        return (
            f"quantization.Quantizer(dim={self.dim}, codebook_size={self.codebook_size}, "
            f"num_codebooks={self.num_codebooks})"
        )

    def get_centers(self) -> Tensor:
        """The centers as they enter the sum: (N, K, D)."""
        return (self.centers_scale * SCALE_SPEED).exp() * self.centers

    def get_data_mean(self) -> Tensor:
        """The mean of the training data as the codebooks have it, entries taken as equally used: (D,)."""
        return self.get_centers().mean(dim=1).sum(dim=0).detach()

    def compute_codebook_correlations(self) -> Tensor:
        """How much each pair of codebooks shares a subspace: (N, N), in 0..1, ones on the diagonal.

        tr(S_i S_j) / sqrt(tr(S_i S_i) tr(S_j S_j)) with S_i the scatter of codebook i about its mean.
        tr(S_i S_j) is the squared Frobenius norm of the inner products between the two codebooks, so no
        (D, D) matrix is formed.
        """
        centers_NKD = self.get_centers().detach()
        centered_MD = (centers_NKD - centers_NKD.mean(dim=1, keepdim=True)).reshape(-1, self.dim)
        cross_NN = centered_MD.new_empty(self.num_codebooks, self.num_codebooks)
        for i, rows_KD in enumerate(centered_MD.split(self.codebook_size)):
            gram_KM = rows_KD @ centered_MD.t()
            cross_NN[i] = gram_KM.square().view(-1, self.num_codebooks, self.codebook_size).sum(dim=(0, 2))
        scale_N = cross_NN.diagonal().rsqrt()
        return cross_NN * scale_N.unsqueeze(0) * scale_N.unsqueeze(1)

    def decode(self, indexes: Tensor) -> Tensor:
        """The frames that codes stand for.

        Args:
            indexes: integers (*, N), or fewer columns when several codes were packed to a byte by
                `encode(as_bytes=True)`.

        Returns: (*, D), differentiable with respect to the centers.

        Raises:
            ValueError: the last dimension fits no packing of N codes, or a code is out of range.
        """
        codes_BN = unpacked(
            indexes.reshape(-1, indexes.shape[-1]).long(), self.num_codebooks, self.codebook_size
        )
        if codes_BN.numel() and (int(codes_BN.min()) < 0 or int(codes_BN.max()) >= self.codebook_size):
            raise ValueError(
                f"codes lie in {int(codes_BN.min())}..{int(codes_BN.max())}, not in "
                f"0..{self.codebook_size - 1}; drop padding frames and check which quantizer made them"
            )
        return self._sum_of_centers(codes_BN).view(*indexes.shape[:-1], self.dim)

    def parameter_tensors(self) -> dict[str, Tensor]:
        """The parameters by name, detached and not copied: the state dict without the id."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def _logits(self, x_BD: Tensor) -> Tensor:
        logits_BM = self.to_logits((self.logits_scale * SCALE_SPEED).exp() * x_BD)
        return logits_BM.view(-1, self.num_codebooks, self.codebook_size)

    def _rows(self, codes_BN: Tensor) -> Tensor:
        return codes_BN + torch.arange(self.num_codebooks, device=codes_BN.device) * self.codebook_size

    def _sum_of_centers(self, codes_BN: Tensor) -> Tensor:
        sum_BD = F.embedding_bag(self._rows(codes_BN), self.centers.view(-1, self.dim), mode="sum")
        return sum_BD * (self.centers_scale * SCALE_SPEED).exp()


def _id_tensor(quantizer_id: str) -> Tensor:
    return torch.tensor(list(quantizer_id.encode("ascii")), dtype=torch.uint8)
