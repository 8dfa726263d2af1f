"""Snapshots of weights: of one moment, and averaged over steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..networks.private.workbench import overwrite

_LAST_QUARTER = 4  # a short average covers the last quarter of its points: earlier ones are from before the net had learnt anything
_SHORT = (torch.float16, torch.bfloat16)  # averaged in 32 bits
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of batch norms, which training changes


@dataclass(frozen=True)
class Snapshot:
    """Values of a network's parameters at one moment, and of its running statistics, without which they are another network."""

    net: nn.Module
    parameters: dict[nn.Parameter, Tensor]
    statistics: dict[str, Tensor]  # by name in the network: moving it, or synchronising batch norms, replaces buffers

    @classmethod
    def take(cls, net: nn.Module) -> Snapshot:
        """Copy the values that a network has now."""
        statistics = {name: buffer.clone() for name, buffer in net.named_buffers() if name.rpartition(".")[2] in _STATISTICS}
        return cls(net, {parameter: parameter.detach().clone() for parameter in net.parameters()}, statistics)

    @classmethod
    def of_names(cls, module: nn.Module, values: Mapping[str, Tensor]) -> Snapshot:
        """Return the snapshot that ``named`` was called on, on the module's devices."""
        known = dict(module.named_parameters(remove_duplicate=False))
        parameters = {known[name]: value for name, value in values.items() if name in known}
        found = cls(module, parameters, {name: value for name, value in values.items() if name not in known})
        return found.converted(lambda tensor, value: value.to(tensor.device, copy=True))

    def named(self, module: nn.Module) -> dict[str, Tensor]:
        """Return copies of the values, by their names in a module, for a checkpoint."""
        names = {id(tensor): name for name, tensor in module.named_buffers(remove_duplicate=False)}
        names |= {id(tensor): name for name, tensor in module.named_parameters(remove_duplicate=False)}
        return {names[id(tensor)]: value.clone() for tensor, value in self.pairs() if id(tensor) in names}

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the network's tensors with the values kept of them."""
        yield from self.parameters.items()
        for name, value in self.statistics.items():
            yield self.net.get_buffer(name), value

    def write(self) -> None:
        """Copy the values into the network."""
        with torch.no_grad():
            for tensor, value in self.pairs():
                overwrite(tensor, value)  # a start may have given a leak to each unit

    def converted(self, change: Callable[[Tensor, Tensor], Tensor]) -> Snapshot:
        """Return the snapshot with ``change(tensor, value)`` in place of each value."""
        parameters = {parameter: change(parameter, value) for parameter, value in self.parameters.items()}
        statistics = {name: change(self.net.get_buffer(name), value) for name, value in self.statistics.items()}
        return Snapshot(self.net, parameters, statistics)

    def renewed(self) -> Snapshot:
        """Return the values that the same tensors have now."""
        return self.converted(lambda tensor, _: tensor.detach().clone())


@dataclass
class Average:
    """Exponential moving average (EMA) of parameters over optimizer steps."""

    # Not torch.optim.swa_utils.AveragedModel: it deep-copies the module, which fails for snnTorch membranes inside a graph, and
    # averages 16-bit parameters in 16 bits, which rounds the share of a step away.

    decay: float  # share of the average that a step keeps, from 0 to 1; less in the first steps, so early points fade
    snapshot: Snapshot
    points: int = 1

    @classmethod
    def begin(cls, decay: float, net: nn.Module) -> Average:
        """Return the average of one point."""
        return cls(decay, Snapshot.take(net).converted(lambda _, value: value.float() if value.dtype in _SHORT else value))

    def update(self) -> None:
        """Add the network's present values."""
        self.points += 1
        weight = max(1 - self.decay, _LAST_QUARTER / (self.points + _LAST_QUARTER - 1))
        for tensor, value in self.snapshot.pairs():
            if value.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter)):
                value.lerp_(tensor.detach().to(value.dtype), weight)
            else:  # frozen values may be infinite
                value.copy_(tensor.detach())
