"""The best of what was evaluated so far, which is evaluated again where what came after it is clearly worse.

Training follows the user's loss, and what counts may be something else: where membranes are trained and spikes decide, a loss that
falls can take accuracy along.  Between refits nothing else would stop that from being shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..networks import is_neuron
from .judge import Judged

__all__ = ["Best", "can_be_held"]


class Best:
    """Parameters that were evaluated, and what the judge said of them.

    Args:
        parameters: of the network, with the values that are meant.
        judged: of these.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], judged: Judged) -> None:
        self.parameters = list(parameters)
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.judged = judged

    def beats(self, judged: Judged) -> bool:
        """Whether it is clearly better than what the judge speaks of, or says nothing of."""
        return math.isnan(judged.value) or self.judged.clearly_better_than(judged)

    def follow(self, judged: Judged) -> None:
        """By what the parameters are now, where that is as good: what is a little worse each time is compared with the best."""
        if self.judged.accuracy > judged.accuracy or (math.isnan(judged.accuracy) and self.judged.value < judged.value):
            return
        self.judged = judged
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.copy_(parameter.detach())

    def show(self) -> None:
        """Writes it into the network."""
        with torch.no_grad():
            for value, parameter in zip(self.values, self.parameters, strict=True):
                parameter.copy_(value)

    @classmethod
    def of_checkpoint(cls, module: nn.Module, values: Mapping[str, Tensor], judged: Iterable[float]) -> Best:
        """From values by the names that parameters have in ``module``."""
        found = cls((module.get_parameter(name) for name in values), Judged(*judged))
        found.values = [value.clone() for value in values.values()]
        return found


def can_be_held(net: nn.Module) -> bool:
    """Whether parameters are all that training changes: running statistics, say, would no longer be those of earlier parameters."""
    return not any(list(module.buffers(recurse=False)) for module in net.modules() if not is_neuron(module))
