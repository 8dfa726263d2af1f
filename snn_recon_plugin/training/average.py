"""A running average of the weights, which is evaluated in place of those that training has come to.

At a constant learning rate weights wander around where they are going to; after a start from a good net that is most of what the
first epochs show.  Their average does not wander, and training never sees it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["Average"]

_LAST = 4  # the average of few points is that of the last in this many: early ones are from before the net had learnt anything


class Average:
    """An exponential moving average of a network's parameters.

    Args:
        decay: how much of the average a step leaves, from 0 to 1; less in the first steps, which fade sooner.
        net: the network, with the point that is the first.
    """

    def __init__(self, decay: float, net: nn.Module) -> None:
        self.decay, self.points = decay, 1
        self.parameters = [parameter for parameter in net.parameters() if parameter.is_floating_point()]
        # In 16 bits the small share that a step adds would be rounded away.
        self.values = [value.float() if value.element_size() < 4 else value.clone() for value in map(_detached, self.parameters)]

    def follow(self) -> None:
        """The optimizer has stepped."""
        self.points += 1
        weight = max(1 - self.decay, _LAST / (self.points + _LAST - 1))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            if parameter.requires_grad:
                value.lerp_(parameter.detach().to(value.dtype), weight)
            else:  # frozen: where it is, which may be infinite
                value.copy_(parameter.detach())

    def show(self) -> None:
        """Writes the average into the network."""
        with torch.no_grad():
            for value, parameter in zip(self.values, self.parameters, strict=True):
                parameter.copy_(value)

    def restore(self, module: nn.Module, values: Mapping[str, Tensor], points: int) -> None:
        """Goes on with an average from a checkpoint, by the names that parameters have in ``module``."""
        self.points = points
        own = {id(parameter): value for parameter, value in zip(self.parameters, self.values, strict=True)}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in own and name in values:
                own[id(parameter)].copy_(values[name])


def _detached(parameter: nn.Parameter) -> Tensor:
    return parameter.detach()
