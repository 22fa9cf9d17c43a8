"""The average of the weights over the steps (Polyak & Juditsky 1992), which forgets old steps.

The last steps of a training jump about a good place; their mean is nearer to it than any of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn


def decay_at(decay: float, step: int) -> float:
    """How much of the average stays at the update after `step` steps (0 for the first).

    The warm-up of TensorFlow's `ExponentialMovingAverage` with `num_updates`: an average over about
    the last tenth of the steps so far, until that is longer than what `decay` asks for. The start
    of the training is soon forgotten.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """An exponential moving average of what training moves: weights, and batch norms' statistics.

    Args:
        network: on its device, in training mode; its tensors are changed in place from here on.
        decay: how much of the average stays at each step (`optim.ema`). None: there is no average,
            and `applied` leaves the network as it is.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.statistics = running_statistics(network)
        trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
        self._live = {} if decay is None else trained | self.statistics
        self.values = {name: tensor.float().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network as it is after the optimiser's step number `step`, from 0."""
        if self.decay is not None:
            live = [tensor.float() for tensor in self._live.values()]
            torch._foreach_lerp_(list(self.values.values()), live, 1 - decay_at(self.decay, step))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights in the block, and its own again after it."""
        own = {name: tensor.clone() for name, tensor in self._live.items()}
        self._fill(self.values)
        try:
            yield
        finally:
            self._fill(own)

    def average_over_processes(self, fabric: Fabric) -> None:
        """Give all processes one model, in itself and in the average.

        Each has normalised other images since the last step. After this they score one model, and
        it is the one that the first process saves.
        """
        averaged = (values for name, values in self.values.items() if name in self.statistics)
        _average((*self.statistics.values(), *averaged), fabric)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from the average of a checkpoint, `values`."""
        for name, own in self.values.items():
            own.copy_(values[name])

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(values[name])


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """By name, the running means and variances of the batch norms that training moves."""
    return {
        f"{place}.{name}": values
        for place, module in network.named_modules()
        if module.training  # what is frozen is the same everywhere, and stays as it is
        for name, values in module.named_buffers(recurse=False)
        if name in ("running_mean", "running_var")
    }


def _average(tensors: Iterable[Tensor], fabric: Fabric) -> None:
    if fabric.world_size > 1:
        for values in tensors:
            values.copy_(torch.as_tensor(fabric.all_reduce(values, reduce_op="mean")))
