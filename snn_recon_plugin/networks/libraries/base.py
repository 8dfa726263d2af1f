"""Contract between the package and a library of spiking neurons.

The package reaches every neuron of a user's net through the :class:`Library` that owns its class.  A library is never imported:
the classes of a net's modules name the package in which they were defined.  Class names and attributes of neurons occur in this
folder alone.

========================  =========================================================================================
Recognise a neuron        ``name``, ``packages``, ``parts``; ``takes_sequences``, ``integrates``, ``keeps_state``,
                          ``quantises_state``, ``inhibits``
Constants                 ``unit_thresholds``, and ``threshold`` from it
Dynamics                  ``dynamics``: the update of one step as numbers, for neurons whose update is linear
Simulation alone          ``_simulate`` for a current, ``run_recurrent`` for a recurrent neuron with its weights;
                          temporal filters are measured through ``run``
Scaling                   ``synapse``: weights that the neuron holds for its inputs, and those that a gain multiplies
Recurrence                ``recurrence``: weights from the layer's own spikes
State                     ``reset``
Speed                     ``fast_passes``
Output of a call          ``spikes``, ``membrane``
========================  =========================================================================================

A new neuron of a known library is an entry in the tables at the top of its file.  A new library is a subclass of ``Library`` in
a file of its own here and an entry in ``LIBRARIES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModuleError
from ..state import ModuleState
from .neuron import Dynamics, Recurrence, Synapse, Trace

__all__ = ["Library", "Visit"]

# Gets a neuron's spikes and membranes, [B, *] each, after a step.
Visit: TypeAlias = Callable[[Tensor, Tensor], None]


class Library(ABC):
    """Reads, resets and simulates the neurons of one library.

    Attributes:
        name: the library's top-level package.
        packages: packages or modules in which its neuron classes are defined.
        parts: classes defined there that are only parts of a neuron.
        known_dynamics: neurons that :meth:`dynamics` takes, for messages.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]] = ()
    known_dynamics: ClassVar[str]

    # -- recognise ---------------------------------------------------------------------------------------------------------

    def owns(self, module: nn.Module) -> bool:
        """Return whether a module's class, or one it derives from, is the library's: a neuron or a helper."""
        return any(cls.__module__.partition(".")[0] == self.name for cls in type(module).__mro__)

    def is_neuron(self, module: nn.Module) -> bool:
        """Return whether a module is a neuron of this library, or of a user's subclass of one."""
        return self._neuron_class(module) is not None

    def _neuron_class(self, module: nn.Module) -> str | None:
        """Return the name of the library's neuron class that a module is of, such as ``"Leaky"``, or None."""
        for cls in type(module).__mro__:
            if any(cls.__module__ == package or cls.__module__.startswith(package + ".") for package in self.packages):
                return None if cls.__name__ in self.parts else cls.__name__
        return None

    @abstractmethod
    def takes_sequences(self, neuron: nn.Module) -> bool:
        """Return whether one call takes all steps, ``[T, B, *]``, not one step, ``[B, *]``."""

    @abstractmethod
    def integrates(self, neuron: nn.Module) -> bool:
        """Return whether the neuron was built without a reset, as a leaky integrator whose membrane is read."""

    def keeps_state(self, neuron: nn.Module) -> bool:
        """Return whether the neuron keeps its state from call to call, so that a time loop around the net can step it."""
        del neuron
        return False

    def quantises_state(self, neuron: nn.Module) -> bool:
        """Return whether the neuron rounds its membrane to a few values."""
        del neuron
        return False

    def inhibits(self, neuron: nn.Module) -> bool:
        """Return whether a spike of one unit keeps the layer's other units from spiking."""
        del neuron
        return False

    # -- constants and dynamics --------------------------------------------------------------------------------------------

    @abstractmethod
    def unit_thresholds(self, neuron: nn.Module) -> Tensor | None:
        """Return the firing threshold, one value or one per unit; None for a neuron that never spikes."""

    def threshold(self, neuron: nn.Module) -> tuple[float, float] | None:
        """Return the lowest and the highest firing threshold; None for a neuron that never spikes."""
        values = self.unit_thresholds(neuron)
        return None if values is None else (float(values.detach().min()), float(values.detach().max()))

    @abstractmethod
    def dynamics(self, neuron: nn.Module) -> Dynamics:
        """Return the update of one step.

        Raises:
            UnsupportedModuleError: the update is not linear, is not known, or differs between units.
        """

    def _scalar(self, neuron: nn.Module, value: Any) -> float:
        """Return a constant that all units share, or refuse units that differ."""
        value = torch.as_tensor(value)
        if value.numel() != 1:
            raise self._unknown_dynamics(f"{type(neuron).__name__} whose units have parameters of their own")
        return float(value)

    def _unknown_dynamics(self, found: str) -> UnsupportedModuleError:
        fix = "use one of those, or hidden='reconstruct', which selects candidates and needs no pattern"
        return UnsupportedModuleError(found, self.known_dynamics, fix)

    # -- weights -----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def synapse(self, neuron: nn.Module) -> Synapse | None:
        """Return the weights that the neuron holds for its inputs; None for a neuron that takes a current."""

    @abstractmethod
    def recurrence(self, neuron: nn.Module) -> Recurrence | None:
        """Return the weights from the layer's own spikes; None for a feed-forward neuron."""

    # -- simulation alone --------------------------------------------------------------------------------------------------

    def each_step(self, neuron: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Simulate a neuron alone from rest, bit for bit as in the net; its stored state stays as found.

        Weights that the neuron holds for its inputs are left out.

        Args:
            neuron: a feed-forward neuron.
            currents: ``[T, B, *]``, T at least 1.
            visit: called with spikes and membranes after each step; only what it keeps takes memory.

        Raises:
            UnsupportedModuleError: neurons of this class can't be simulated alone.
        """
        with _undisturbed(neuron):
            self._simulate(neuron, currents, visit)

    def run(self, neuron: nn.Module, currents: Tensor) -> Trace:
        """Simulate a neuron alone as :meth:`each_step` does, and return all steps."""
        spikes: list[Tensor] = []
        membranes: list[Tensor] = []

        def keep(spike: Tensor, membrane: Tensor) -> None:
            spikes.append(spike)
            membranes.append(membrane)

        self.each_step(neuron, currents, keep)
        return Trace(torch.stack(spikes), torch.stack(membranes))

    def run_recurrent(self, neuron: nn.Module, inputs: Tensor) -> Tensor:
        """Run a recurrent neuron from rest with its own weights; its stored state stays as found.

        Args:
            neuron: a neuron with a dense recurrence.
            inputs: ``[T, B, *]``, what one call of the neuron takes at each step.

        Returns:
            Its spikes, ``[T, B, *]``.
        """
        with _undisturbed(neuron):
            return self._emit(neuron, inputs)

    @abstractmethod
    def _simulate(self, neuron: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Do what :meth:`each_step` promises; the neuron's attributes are put back afterwards."""

    @abstractmethod
    def _emit(self, neuron: nn.Module, inputs: Tensor) -> Tensor:
        """Do what :meth:`run_recurrent` promises; the neuron's attributes are put back afterwards."""

    def fast_passes(self, net: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the neurons of a net run faster without gradients, to the same bits."""
        del net
        return nullcontext()

    # -- state and output --------------------------------------------------------------------------------------------------

    @abstractmethod
    def reset(self, neuron: nn.Module) -> None:
        """Put the neuron into its resting state, through its own reset if it has one."""

    def spikes(self, output: Any) -> Tensor:
        """Return the spikes in the output of a call: the first item if it also holds states."""
        spikes = output[0] if isinstance(output, (tuple, list)) else output
        assert isinstance(spikes, Tensor)
        return spikes

    @abstractmethod
    def membrane(self, neuron: nn.Module, output: Any) -> Tensor | None:
        """Return the membrane right after a call that returned ``output``; None if it isn't visible."""


@contextmanager
def _undisturbed(neuron: nn.Module) -> Iterator[None]:
    """Turn gradients off and put all attributes of a neuron back at the end."""
    kept = ModuleState([neuron])
    try:
        with torch.no_grad():
            yield
    finally:
        kept.restore()
