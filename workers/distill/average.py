"""The mean of a model's weights over several moments of its training."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """Running mean of a model's state, on the model's device.

    Floating-point tensors are averaged, the running statistics of batch norms among them; others, such as the
    batch norm's count of batches, are those of the last update: a mean of counts means nothing, and torch's
    `AveragedModel` cannot form one on CUDA. Names and arithmetic are those of `AveragedModel`.

    Args:
        model: before its first update the average is this model as it is now.
        decay: 0 gives each update the same weight. Above it an exponential mean: what was there keeps so much of its
            weight at each update, less in the first ones.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.0) -> None:
        self._mean = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._updates, self._decay = 0, decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Count the model as it is now in."""
        # Until there were some updates the weights of the start would count for nearly all.
        keep = min(self._decay, (1 + self._updates) / (10 + self._updates))
        updates = 1 / (1 - keep) if self._decay else self._updates + 1
        for name, tensor in model.state_dict().items():
            mean = self._mean[name]
            if self._updates and mean.is_floating_point():
                mean += (tensor - mean) / updates
            else:
                mean.copy_(tensor)
        self._updates += 1

    def mean(self) -> dict[str, Tensor]:
        """The averaged state dict of the model; not copied."""
        return dict(self._mean)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that `load_state_dict` goes on from; not copied."""
        return {
            "n_averaged": torch.tensor(self._updates),
            **{f"module.{name}": tensor for name, tensor in self._mean.items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state_dict` returned.

        Raises:
            ValueError: the state is of another model.
        """
        names = set(self.state_dict())
        if names != set(state):
            raise ValueError(
                f"the averaged weights are of another model: they differ in {sorted(names ^ set(state))[:5]}; "
                "resume with the student's settings unchanged, or train anew"
            )
        for name, tensor in self._mean.items():
            tensor.copy_(state[f"module.{name}"])
        self._updates = int(state["n_averaged"])
