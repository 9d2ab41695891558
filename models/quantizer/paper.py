"""The paper's training schedule (arXiv 2211.00508, section 3), one step at a time.

Phase one trains twice the codebooks with the square root of the entries; then pairs of codebooks are
multiplied out into one of all sums, and phase two trains those. The learning rate is halved after every
quarter of a phase, and phase two starts at half of phase one's.

Shape suffixes: B frames, N codebooks, K entries per codebook, D embedding dimension.
"""

import math

import torch
from torch import Tensor

from mvqkd.models.quantizer.quantizer import Quantizer

_ENTROPY_SCALE = 0.01
_TWO_PASS_PROBABILITY = 0.5


class QuantizerTrainer:
    """Trains a Quantizer on batches that the caller gives; same use as in `multi_quantization`.

        trainer = QuantizerTrainer(dim=512, bytes_per_frame=8, device="cpu")
        while not trainer.done():
            trainer.step(next_batch())
        quantizer = trainer.get_quantizer()

    As in the reference, phase one takes phase_one_iters + 1 steps.

    Args:
        dim: embedding dimension.
        bytes_per_frame: number of codebooks of the result, any number from 1.
        device: where to train.
        phase_one_iters: steps of phase one (tuned by the paper's authors for batches of 600 frames).
        phase_two_iters: steps of phase two.
        lr: initial learning rate.
        codebook_size: entries per codebook of the result: 4, 16, 64 or 256.
        seed: fixes the initial weights and the random number of search passes; None draws one from torch's
            global generator.

    Raises:
        ValueError: a size or the schedule is impossible.
    """

    def __init__(
        self,
        dim: int,
        bytes_per_frame: int,
        device: torch.device | str = "cpu",
        phase_one_iters: int = 10000,
        phase_two_iters: int = 10000,
        lr: float = 0.005,
        *,
        codebook_size: int = 256,
        seed: int | None = None,
    ) -> None:
        if codebook_size not in (4, 16, 64, 256):
            raise ValueError(f"codebook_size={codebook_size}; the schedule squares it: use 4, 16, 64 or 256")
        if phase_one_iters < 1 or phase_two_iters < 1 or lr <= 0:
            raise ValueError(
                f"phase_one_iters={phase_one_iters}, phase_two_iters={phase_two_iters} and lr={lr} "
                "must be positive"
            )
        self.phase_one_iters = phase_one_iters
        self.phase_two_iters = phase_two_iters
        self.lr = lr
        self.cur_iter = 0
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            quantizer = Quantizer(dim, math.isqrt(codebook_size), 2 * bytes_per_frame)
        self._use(quantizer.to(device))

    def done(self) -> bool:
        """Whether both phases are complete."""
        return self.cur_iter > self.phase_one_iters + self.phase_two_iters

    @property
    def phase(self) -> int:
        """1 or 2: the phase of the next step."""
        return 1 if self.cur_iter <= self.phase_one_iters else 2

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        if self.phase == 1:
            return self.lr * 0.5 ** (4 * self.cur_iter // self.phase_one_iters)
        steps = self.cur_iter - self.phase_one_iters - 1
        return 0.5 * self.lr * 0.5 ** (4 * steps // self.phase_two_iters)

    def step(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One optimizer step on the frames x (*, dim); returns the parts of `compute_loss`, detached.

        Raises:
            ValueError: the last dimension is not dim.
        """
        quantizer = self.quantizer
        if x.shape[-1] != quantizer.dim:
            raise ValueError(f"x ends in {x.shape[-1]} channels; this trainer was made for {quantizer.dim}")
        x_BD = x.detach().reshape(-1, quantizer.dim).to(quantizer.centers)
        passes = 2 if float(torch.rand((), generator=self._generator)) < _TWO_PASS_PROBABILITY else 1
        parts = quantizer.compute_loss(x_BD, passes)
        reconstruction, logprob, logits_entropy, _ = parts
        self._optimizer.zero_grad()
        (reconstruction + logprob + _ENTROPY_SCALE * logits_entropy).backward()
        self._optimizer.param_groups[0]["lr"] = self.learning_rate
        self._optimizer.step()
        if self.cur_iter == self.phase_one_iters:
            self._use(quantizer.get_product_quantizer())
        self.cur_iter += 1
        reconstruction, logprob, logits_entropy, index_entropy = (part.detach() for part in parts)
        return reconstruction, logprob, logits_entropy, index_entropy

    def get_quantizer(self) -> Quantizer:
        """The trained quantizer in eval mode; its id follows from its weights.

        Raises:
            ValueError: training is not complete.
        """
        if not self.done():
            steps = self.phase_one_iters + self.phase_two_iters + 1
            raise ValueError(f"only {self.cur_iter} of {steps} steps are done; call step() until done()")
        self.quantizer.set_id_from_weights()
        return self.quantizer.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to continue bit for bit: copies, flat names, tensors only."""
        state = {f"quantizer.{name}": t.detach().clone() for name, t in self.quantizer.state_dict().items()}
        for name, parameter in self.quantizer.named_parameters():
            for key, value in self._optimizer.state[parameter].items():
                state[f"optimizer.{name}.{key}"] = value.detach().clone()
        state["cur_iter"] = torch.tensor(self.cur_iter)
        state["schedule"] = self._schedule()
        state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned, in a trainer of the same arguments (any seed).

        Raises:
            ValueError: the state is incomplete or of a trainer with other arguments.
        """
        if "schedule" not in state or not torch.equal(state["schedule"].cpu(), self._schedule()):
            raise ValueError(
                "this state is of a trainer with other sizes or another schedule; resume with the "
                "settings it was started with, or start anew"
            )
        try:
            centers_NKD = state["quantizer.centers"]
            quantizer = Quantizer(centers_NKD.shape[2], centers_NKD.shape[1], centers_NKD.shape[0])
            quantizer.load_state_dict({name: state[f"quantizer.{name}"] for name in quantizer.state_dict()})
            self._use(quantizer.to(self.quantizer.centers.device))
            self.cur_iter = int(state["cur_iter"])
            self._generator.set_state(state["generator"].cpu())
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"this training state is incomplete or damaged: {error}; start anew") from error
        for name, parameter in self.quantizer.named_parameters():
            prefix = f"optimizer.{name}."
            own = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
            if own:
                self._optimizer.state[parameter] = {
                    key: t.clone().to(parameter.device) for key, t in own.items()
                }

    def _schedule(self) -> Tensor:
        final_codebooks, final_size = self.quantizer.num_codebooks, self.quantizer.codebook_size
        if self.phase == 1:
            final_codebooks, final_size = final_codebooks // 2, final_size**2
        return torch.tensor(
            [
                self.quantizer.dim,
                final_codebooks,
                final_size,
                self.phase_one_iters,
                self.phase_two_iters,
                self.lr,
            ],
            dtype=torch.float64,
        )

    def _use(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer.train()
        self._optimizer = torch.optim.Adam(
            quantizer.parameters(), lr=self.lr, betas=(0.9, 0.98), eps=1e-9, weight_decay=1e-6, fused=True
        )


class PaperFit:
    """The trainer as a way of fitting that `fit_quantizer` can run."""

    def __init__(self, trainer: QuantizerTrainer) -> None:
        self._trainer = trainer
        self.phase = trainer.phase
        """Of the last step."""
        self.total = trainer.phase_one_iters + trainer.phase_two_iters + 1
        self.done, self.state_dict, self.load_state_dict = (
            trainer.done,
            trainer.state_dict,
            trainer.load_state_dict,
        )

    @property
    def position(self) -> int:
        """Steps taken."""
        return self._trainer.cur_iter

    def step(self, x_BD: Tensor) -> float:
        """One step; returns its relative reconstruction loss."""
        self.phase = self._trainer.phase
        return float(self._trainer.step(x_BD)[0])

    def note_time(self, used: float) -> None:
        """Nothing: the schedule counts steps."""

    def quantizer(self) -> Quantizer:
        """As it stands."""
        return self._trainer.quantizer
