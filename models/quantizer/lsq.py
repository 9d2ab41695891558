"""Fitting by alternating exact least squares: search the codes, solve for the centers, again.

With the codes given, the best centers are the solution of one linear system (LSQ, Martinez et al. 2016); with the
centers given, codes are searched as in encoding. Between the two the centers are shaken by noise that fades, as in
LSQ++ (Martinez et al. 2018), which leads past poor minima. New here: the counts behind the linear system are a
fading sum over rounds, so that a round needs but a part of the frames; and the search also prefers codes that a
linear classifier expects (`predictability`). That classifier is the discriminant of Fisher and follows from the same
sums in closed form.

Shape suffixes: B frames, N codebooks, K entries per codebook, M = N * K, D embedding dimension.
"""

import torch
from torch import Tensor

from mvqkd.models.precision import full_float32_products
from mvqkd.models.quantizer.discriminant import discriminant
from mvqkd.models.quantizer.lsq_start import prefix_weights, residual_kmeans
from mvqkd.models.quantizer.quantizer import Quantizer
from mvqkd.models.quantizer.search.effort import Effort
from mvqkd.models.quantizer.search.tables import SearchTables

_SEARCH_PASSES = 2
_ONE_HOT_ROWS = 4096
_PAIRS_AT_ONCE = 2**23
_NOISE = 0.5
"""Standard deviation of the first round's noise: this part of a codebook's share of the error."""
_PROXIMAL = 1e-3
"""Pull towards the last centers, in mean counts: what the counts leave open stays as it is."""
_MAX_DECAY = 0.9
_JUDGED_FRAMES = 4096
_FEWEST_FRAMES_PER_ENTRY = 16
_DEAD = 0.5
_MAX_ROUNDS_FACTOR = 10


class LsqFit:
    """The state of a fit on frames of mean 0 whose mean square is 1 in each channel, on average.

    Args:
        start: frames (B, D) for the first codebooks: residual k-means, one codebook after the other.
        num_codebooks, codebook_size: N, K.
        num_frames: of the data, all rounds together; rounds of fewer frames remember those before.
        round_frames: frames of a round.
        anneal_rounds: rounds until the noise is gone.
        tolerance: the fit has converged when as many rounds as a quarter of `anneal_rounds` have not lowered the
            objective by this part.
        predictability: relative reconstruction loss that one nat of -log p of a code is worth.
        ordered: the first 1, 2, 4, ... codebooks shall be codes by themselves.
        seed: of the start and the noise.
    """

    def __init__(
        self,
        start: Tensor,
        *,
        num_codebooks: int,
        codebook_size: int,
        num_frames: int,
        round_frames: int,
        anneal_rounds: int,
        tolerance: float,
        predictability: float,
        ordered: bool,
        seed: int,
    ) -> None:
        self.num_codebooks, self.codebook_size, self.dim = num_codebooks, codebook_size, start.shape[1]
        self.position = 0
        self.objectives: list[float] = []
        self._timed_position, self._time_used = 0, 0.0
        self.phase = 1
        """Of the last round: 1 while there is noise, then 2."""
        self._anneal_rounds, self._tolerance, self._seed = anneal_rounds, tolerance, seed
        self._num_frames, self._round_frames = num_frames, min(round_frames, num_frames)
        self._frames = self._round_frames
        self._logprob_weight = predictability * self.dim / num_codebooks
        generator = torch.Generator().manual_seed(seed)
        with full_float32_products():
            self._centers_MD, errors_N = residual_kmeans(start, num_codebooks, codebook_size, generator)
        self._prefix_weights = prefix_weights(errors_N) if ordered else None
        size = num_codebooks * codebook_size
        self._counts_MM = start.new_zeros(size, size)
        self._sums_MD = start.new_zeros(size, self.dim)
        self._squares_DD = start.new_zeros(self.dim, self.dim)
        self._error_D = start.new_full((self.dim,), errors_N[-1] / self.dim)
        self._weight_MD = start.new_zeros(size, self.dim)
        self._bias_M = start.new_zeros(size)

    @property
    def total(self) -> int:
        """Rounds in all, as far as can be told."""
        return self.position if self.done() else max(self._anneal_rounds + 2 * self._wait, self.position + 1)

    @property
    def temperature(self) -> float:
        """The noise of the next round, from 1 down to 0."""
        return max(0.0, 1.0 - max(self.position / self._anneal_rounds, self._time_used / 0.8))

    @property
    def _wait(self) -> int:
        return max(4, self._anneal_rounds // 4)

    def note_time(self, used: float) -> None:
        """Say before the first round and after each which part of a time limit is over.

        The noise fades with the time where the rounds would not be done. The next rounds take as many frames as
        leave time for all of them, for the noise has to fade in small steps.
        """
        rounds, took = self.position - self._timed_position, used - self._time_used
        self._timed_position, self._time_used = self.position, used
        if not rounds or took <= 0:
            return
        rounds_left = max(1, self._anneal_rounds + self._wait - self.position)
        affordable = int(self._frames * max(0.0, 1.0 - used) / rounds_left * rounds / took)
        fewest = _FEWEST_FRAMES_PER_ENTRY * self.codebook_size
        self._frames = min(self._round_frames, max(fewest, affordable))

    def done(self) -> bool:
        """Whether the noise is gone and the objective stands still."""
        out_of_time = self._time_used >= 1 and self.position > 0
        if self.temperature > 0 or out_of_time:
            return out_of_time
        # The noise itself raises the objective, so only what came after it is compared.
        calm = self.objectives[self._anneal_rounds :]
        if len(calm) <= self._wait:
            return False
        if self.position >= _MAX_ROUNDS_FACTOR * self._anneal_rounds:
            return True
        return min(calm[-self._wait :]) > min(calm[: -self._wait]) * (1 - self._tolerance)

    @torch.no_grad()
    def step(self, x_BD: Tensor) -> float:
        """One round; returns the relative reconstruction loss of some of its frames, with the centers as they were."""
        self.phase = 1 if self.temperature > 0 else 2
        x_BD = x_BD[: self._frames]
        with torch.autocast(x_BD.device.type, enabled=False), full_float32_products():
            rows_BN = self._search(x_BD) + self._first_N
            loss, objective = self._judge(x_BD[:_JUDGED_FRAMES], rows_BN[:_JUDGED_FRAMES])
            self.objectives.append(objective)
            self._count(x_BD, rows_BN)
            self._solve_centers()
            self._weight_MD, self._bias_M = discriminant(
                self._counts_MM.diagonal(), self._sums_MD, self._squares_DD, self.codebook_size
            )
        self.position += 1
        return loss

    def quantizer(self) -> Quantizer:
        """The quantizer as it stands, in eval mode, for frames as `step` takes them."""
        weights = {
            "centers": self._centers_MD.view(self.num_codebooks, self.codebook_size, self.dim),
            "to_logits.weight": self._weight_MD,
            "to_logits.bias": self._bias_M,
            "centers_scale": self._bias_M.new_zeros(()),
            "logits_scale": self._bias_M.new_zeros(()),
        }
        return Quantizer.of_weights(
            weights, logprob_weight=self._logprob_weight, prefix_weights=self._prefix_weights
        ).eval()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything to continue from, bit for bit: copies, tensors only."""
        # Contiguous, as files of tensors want them; what solvers return is not.
        state = {
            name: getattr(self, f"_{name}").clone(memory_format=torch.contiguous_format) for name in _TENSORS
        }
        state["objectives"] = torch.tensor(self.objectives, dtype=torch.float64)
        state["prefix_weights"] = torch.tensor(self._prefix_weights or [], dtype=torch.float64)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: the state is incomplete or of other sizes.
        """
        for name in _TENSORS:
            own = getattr(self, f"_{name}")
            if name not in state or state[name].shape != own.shape:
                raise ValueError(f"this training state has no fitting {name}: it is damaged; start anew")
            setattr(self, f"_{name}", state[name].to(own))
        self.objectives = state["objectives"].tolist()
        self.position = self._timed_position = len(self.objectives)
        if self._prefix_weights is not None:
            self._prefix_weights = state["prefix_weights"].tolist()

    @property
    def _first_N(self) -> Tensor:
        return torch.arange(self.num_codebooks, device=self._centers_MD.device) * self.codebook_size

    def _search(self, x_BD: Tensor) -> Tensor:
        centers_MD = self._centers_MD
        if self.temperature > 0 and self.position > 0:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.position)
            noise_MD = torch.randn(centers_MD.shape, generator=generator).to(centers_MD)
            centers_MD = centers_MD + noise_MD * (
                self.temperature * _NOISE * (self._error_D / self.num_codebooks).sqrt()
            )
        tables = SearchTables.build(
            centers_MD.view(self.num_codebooks, self.codebook_size, self.dim),
            logits=(self._weight_MD, self._bias_M),
            logprob_weight=self._logprob_weight if self.position > 0 else 0.0,
            prefix_weights=self._prefix_weights,
        )
        effort = Effort.of_passes(_SEARCH_PASSES, self.num_codebooks)
        return tables.codes(x_BD, effort)

    def _judge(self, x_BD: Tensor, rows_BN: Tensor) -> tuple[float, float]:
        """The relative reconstruction loss and what the fit minimises, of some frames; renews `_error_D`."""
        error_BD = x_BD - torch.nn.functional.embedding_bag(rows_BN, self._centers_MD, mode="sum")
        self._error_D = error_BD.square().mean(dim=0)
        loss = float(self._error_D.sum() / x_BD.square().mean(dim=0).sum())
        error = self._error_D.sum()
        if self._prefix_weights is not None:
            parts_BND = self._centers_MD[rows_BN].cumsum(dim=1)
            errors_N = (x_BD.unsqueeze(1) - parts_BND).square().sum(dim=2).mean(dim=0)
            error = errors_N @ errors_N.new_tensor(self._prefix_weights)
        if self._logprob_weight and self.position > 0:
            logits_BM = x_BD @ self._weight_MD.t() + self._bias_M
            logprobs_BNK = logits_BM.view(-1, self.num_codebooks, self.codebook_size).log_softmax(dim=2)
            chosen_BN = logprobs_BNK.gather(2, (rows_BN - self._first_N).unsqueeze(2)).squeeze(2)
            error = error - self._logprob_weight * chosen_BN.sum(dim=1).mean()
        return loss, float(error / self.dim)

    def _count(self, x_BD: Tensor, rows_BN: Tensor) -> None:
        """Add a round's frames to the fading sums."""
        size = len(self._counts_MM)
        decay = min(_MAX_DECAY, max(0.0, 1.0 - len(x_BD) / self._num_frames))
        self._counts_MM *= decay
        self._sums_MD *= decay
        self._squares_DD *= decay
        pairs_MM = torch.zeros_like(self._counts_MM)
        # Half of the pairs, for the other half mirrors them.
        later, sooner = torch.tril_indices(self.num_codebooks, self.num_codebooks, -1, device=x_BD.device)
        for rows in rows_BN.split(_PAIRS_AT_ONCE // max(1, len(later))):
            pairs = (rows[:, later] * size + rows[:, sooner]).reshape(-1)
            pairs_MM += torch.bincount(pairs, minlength=size * size).view(size, size)
        self._counts_MM += pairs_MM
        self._counts_MM += pairs_MM.t()
        self._counts_MM.diagonal().add_(torch.bincount(rows_BN.reshape(-1), minlength=size))
        if x_BD.device.type == "cpu":
            for rows_B in rows_BN.unbind(dim=1):
                self._sums_MD.index_add_(0, rows_B, x_BD)
        else:
            # Not index_add_, whose sums are in no fixed order on CUDA.
            for n, rows_B in enumerate(rows_BN.unbind(dim=1)):
                first = n * self.codebook_size
                for rows, x in zip(rows_B.split(_ONE_HOT_ROWS), x_BD.split(_ONE_HOT_ROWS), strict=True):
                    chosen_BK = torch.nn.functional.one_hot(rows - first, self.codebook_size).to(x.dtype)
                    self._sums_MD[first : first + self.codebook_size] += chosen_BK.t() @ x
        self._squares_DD.addmm_(x_BD.t(), x_BD)

    def _solve_centers(self) -> None:
        counts_M = self._counts_MM.diagonal()
        left_MM, right_MD = self._counts_MM, self._sums_MD
        if self._prefix_weights is not None:
            weight_N = left_MM.new_tensor(self._prefix_weights).flip(0).cumsum(dim=0).flip(0)
            weight_M = weight_N.repeat_interleave(self.codebook_size)
            # Two codebooks meet in the prefixes from the later one on; the weights fall.
            left_MM = left_MM * torch.minimum(weight_M.unsqueeze(0), weight_M.unsqueeze(1))
            right_MD = right_MD * weight_M.unsqueeze(1)
        pull = _PROXIMAL * float(left_MM.diagonal().mean())
        right_MD = right_MD + pull * self._centers_MD
        for _ in range(6):
            regular_MM = left_MM.clone()
            regular_MM.diagonal().add_(pull)
            factor_MM, failed = torch.linalg.cholesky_ex(regular_MM)
            if not int(failed):
                break
            right_MD = right_MD + 9 * pull * self._centers_MD
            pull *= 10
        else:
            raise ArithmeticError("the least squares system of the centers is singular; give more frames")
        centers_MD = torch.cholesky_solve(right_MD, factor_MM)
        if self.temperature > 0:
            self._revive(centers_MD, counts_M)
        self._centers_MD = centers_MD

    def _revive(self, centers_MD: Tensor, counts_M: Tensor) -> None:
        """Entries that no frame uses begin again at one that many use; the noise tells them apart."""
        counts_NK = counts_M.view(self.num_codebooks, self.codebook_size)
        order_NK = counts_NK.argsort(dim=1, descending=True)
        for n, (counts_K, order_K) in enumerate(zip(counts_NK, order_NK, strict=True)):
            dead_K = (counts_K < _DEAD).nonzero().squeeze(1)
            if 0 < len(dead_K) <= self.codebook_size // 2:
                centers_MD[n * self.codebook_size + dead_K] = centers_MD[
                    n * self.codebook_size + order_K[: len(dead_K)]
                ]


_TENSORS = ("centers_MD", "counts_MM", "sums_MD", "squares_DD", "error_D", "weight_MD", "bias_M")
