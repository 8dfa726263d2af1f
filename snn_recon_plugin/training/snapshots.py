"""Values of parameters at one moment, their running average, and the best ones so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .judge import Judged

__all__ = ["Average", "Best", "Snapshot"]

_LAST = 4  # a short average covers the last quarter of its points: earlier ones are from before the net had learnt anything


@dataclass(frozen=True)
class Snapshot:
    """Values of parameters at one moment."""

    values: dict[nn.Parameter, Tensor]

    @classmethod
    def take(cls, parameters: Iterable[nn.Parameter]) -> Snapshot:
        """Copy the values that parameters have now."""
        return cls({parameter: parameter.detach().clone() for parameter in parameters})

    @classmethod
    def of_names(cls, module: nn.Module, values: Mapping[str, Tensor]) -> Snapshot:
        """Return the snapshot that ``named`` was called on."""
        return cls({module.get_parameter(name): value.clone() for name, value in values.items()})

    def named(self, module: nn.Module) -> dict[str, Tensor]:
        """Return copies of the values, by the parameters' names in a module, for a checkpoint."""
        names = {id(parameter): name for name, parameter in module.named_parameters(remove_duplicate=False)}
        return {names[id(parameter)]: value.clone() for parameter, value in self.values.items() if id(parameter) in names}

    def write(self) -> None:
        """Copy the values into the parameters."""
        with torch.no_grad():
            for parameter, value in self.values.items():
                parameter.copy_(value)

    def moved(self) -> Snapshot:
        """Return the same values on the parameters' devices."""
        return Snapshot({parameter: value.to(parameter.device) for parameter, value in self.values.items()})


@dataclass
class Average:
    """Exponential moving average (EMA) of parameters over optimizer steps.

    ``decay`` is the share of the average that a step keeps, from 0 to 1; less in the first steps, so early points fade.
    """

    # Not torch.optim.swa_utils.AveragedModel: it deep-copies the module, which fails for snnTorch membranes inside a graph, and
    # averages 16-bit parameters in 16 bits, which rounds the share of a step away.

    decay: float
    snapshot: Snapshot
    points: int = 1

    @classmethod
    def begin(cls, decay: float, parameters: Iterable[nn.Parameter]) -> Average:
        """Return the average of one point, of the parameters of floating point."""
        values = Snapshot.take(parameter for parameter in parameters if parameter.is_floating_point()).values
        return cls(decay, Snapshot({key: value.float() if value.element_size() < 4 else value for key, value in values.items()}))

    def update(self) -> None:
        """Add the parameters' present values."""
        self.points += 1
        weight = max(1 - self.decay, _LAST / (self.points + _LAST - 1))
        for parameter, value in self.snapshot.values.items():
            if parameter.requires_grad:
                value.lerp_(parameter.detach().to(value.dtype), weight)
            else:  # frozen values may be infinite
                value.copy_(parameter.detach())


@dataclass
class Best:
    """The best weights evaluated so far, and their judgement."""

    snapshot: Snapshot
    judged: Judged

    def beats(self, judged: Judged) -> bool:
        """Return whether it is clearly better, or the other one has no judgement."""
        return math.isnan(judged.value) or self.judged.clearly_better_than(judged)

    def update(self, judged: Judged) -> None:
        """Take the parameters' present values if they are as good; a slow decline is thus measured from the best."""
        if self.judged.accuracy > judged.accuracy or (math.isnan(judged.accuracy) and self.judged.value < judged.value):
            return
        self.judged, self.snapshot = judged, Snapshot.take(self.snapshot.values)
