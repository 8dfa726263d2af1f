"""What the package asks of a spiking neuron module, whichever library it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["NeuronAdapter", "Synapse", "Trace", "Visit", "class_in", "collect"]

# Gets a neuron's spikes and membranes, [B, *] each, after a step.
Visit: TypeAlias = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Trace:
    """What a neuron did over time.

    Args:
        spikes: ``[T, B, *]``, what the neuron emits at each step; for one that never spikes, its membrane.
        membranes: ``[T, B, *]``, its membrane after each step.
    """

    spikes: Tensor
    membranes: Tensor


@dataclass(frozen=True)
class Synapse:
    """A synapse that a neuron module holds itself, such as the Linear inside ``snn.LinearLeaky``.

    Args:
        module: the module that holds the weight; the neuron itself where it holds a raw parameter.
        weight: the weight's name in that module, or None where it isn't one matrix ``[out, in]`` alone.
        bias: the bias's name, or None without one.
    """

    module: nn.Module
    weight: str | None = None
    bias: str | None = None


class NeuronAdapter(Protocol):
    """Reads, resets and simulates the neurons of one library."""

    library: str

    def owns(self, module: nn.Module) -> bool:
        """Say whether ``module`` is a neuron of this library."""
        ...

    def takes_sequences(self, module: nn.Module) -> bool:
        """Say whether one call of ``module`` takes all steps, ``[T, B, *]``, rather than one step, ``[B, *]``."""
        ...

    def synapse(self, module: nn.Module) -> Synapse | None:
        """Give the synapse that the neuron module holds itself, or None for a neuron that takes a current."""
        ...

    def threshold(self, module: nn.Module) -> tuple[float, float] | None:
        """Give the lowest and the highest firing threshold of the module's units, or None for one that never spikes."""
        ...

    def integrates(self, module: nn.Module) -> bool:
        """Say whether ``module`` was built without a reset, as a leaky integrator whose membrane is read."""
        ...

    def unit_thresholds(self, module: nn.Module) -> Tensor | None:
        """Give the firing threshold, one value or one a unit, or None for a module that never spikes."""
        ...

    def reset(self, module: nn.Module) -> None:
        """Put the neuron into its resting state, through its own reset where it has one."""
        ...

    def spikes(self, output: Any) -> Tensor:
        """Pick the spikes from what a call of a neuron returned."""
        ...

    def membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """Read the membrane right after a call of ``module`` that returned ``output``; None where it can't be seen."""
        ...

    def each_step(self, module: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Simulate the neuron alone from rest on ``currents`` ``[T, B, *]``; its stored state stays as found.

        ``visit`` is called after each step: what it does not keep takes no memory.

        Raises:
            UnsupportedModuleError: if neurons of this class can't be simulated alone.
        """
        ...

    def run(self, module: nn.Module, currents: Tensor) -> Trace:
        """Do the same, and keep all steps."""
        ...


def collect(each_step: Callable[[nn.Module, Tensor, Visit], None], module: nn.Module, currents: Tensor) -> Trace:
    """Stack over time what an adapter's ``each_step`` shows."""
    spikes: list[Tensor] = []
    membranes: list[Tensor] = []

    def visit(spike: Tensor, membrane: Tensor) -> None:
        spikes.append(spike)
        membranes.append(membrane)

    each_step(module, currents, visit)
    return Trace(torch.stack(spikes), torch.stack(membranes))


def class_in(module: nn.Module, packages: Iterable[str]) -> str | None:
    """Name the first class, from a module's own up, that was defined in one of some packages.

    Args:
        module: any module; one of a user's subclass counts as the library's class it derives from.
        packages: dotted names of packages or modules.

    Returns:
        For example ``"Leaky"``, or None.
    """
    wanted = tuple(packages)
    for cls in type(module).__mro__:
        if any(cls.__module__ == package or cls.__module__.startswith(package + ".") for package in wanted):
            return cls.__name__
    return None
