"""SpikingJelly's neurons, of ``spikingjelly.activation_based``.

A neuron takes one step a call in ``step_mode="s"``, and all of them in ``"m"``.  In both it keeps its state until
``functional.reset_net``.  A step charges the membrane, compares it with the threshold and resets it at once: the stored membrane is
the one after the reset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .library import Dynamics, Library, Recurrence, Synapse, Visit
from .spikingjelly_steps import spikingjelly_stepper
from .stepper import Stepper

_INTEGRATE, _LEAKY, _LEARNED = "IFNode", "LIFNode", "ParametricLIFNode"
_INTEGRATORS = ("NonSpikingIFNode", "NonSpikingLIFNode")  # they start from rest in every call
_BASES, _NORMALISED = {"BaseNode", "SimpleBaseNode"}, "MPBNBaseNode"  # with a membrane ``v``; with a batch norm of fixed width
_ALL_STEPS = "MultiStepModule"  # base of the modules that have no other mode


class SpikingJelly(Library):
    """SpikingJelly: neurons that store their state, and take one step or all of them by their ``step_mode``."""

    name = "spikingjelly"
    title = "SpikingJelly"
    example = "neuron.LIFNode()"
    integrator = "neuron.NonSpikingLIFNode()"
    packages = ("spikingjelly.activation_based.neuron",)
    without_leak = "has one time constant for all its units"
    known_alone = "IFNode, LIFNode, ParametricLIFNode or another BaseNode, NonSpikingIFNode, NonSpikingLIFNode"
    known_dynamics = "an IFNode, LIFNode or ParametricLIFNode of SpikingJelly"

    def takes_sequences(self, module: nn.Module) -> bool:
        """Return whether a neuron or container has ``step_mode="m"``, or no other mode."""
        return getattr(module, "step_mode", None) == "m" or _ALL_STEPS in _bases(module)

    def integrates(self, neuron: nn.Module) -> bool:
        return self._neuron_class(neuron) in _INTEGRATORS

    def keeps_state(self, neuron: nn.Module) -> bool:
        return not self.integrates(neuron)

    def unit_thresholds(self, neuron: nn.Module) -> Tensor | None:
        value = getattr(neuron, "v_threshold", None)
        return None if value is None else torch.as_tensor(value)

    def dynamics(self, neuron: Any) -> Dynamics:
        name = self._neuron_class(neuron)
        if name == _INTEGRATE:
            rate = 0.0
        elif name == _LEAKY:
            rate = 1 / self._scalar(neuron, neuron.tau)
        elif name == _LEARNED:
            rate = self._scalar(neuron, neuron.w.detach().sigmoid())
        else:
            raise self._unknown_dynamics(f"a neuron of class {type(neuron).__name__}")
        threshold = self._scalar(neuron, neuron.v_threshold)
        reset = None if neuron.v_reset is None else self._scalar(neuron, neuron.v_reset)
        return Dynamics(
            leak=1 - rate,
            gain=rate if getattr(neuron, "decay_input", False) else 1.0,
            rest=rate * (reset or 0.0),
            start=reset or 0.0,
            threshold=threshold,
            subtract=(1 - rate) * threshold if reset is None else 0.0,  # at once: it leaks in the next step
            reset=reset,
        )

    def _stepper(self, neuron: nn.Module) -> Stepper | None:
        """Return the stepper of an IFNode, LIFNode or ParametricLIFNode in step mode "s" that keeps no record of its membrane."""
        return spikingjelly_stepper(neuron, self._neuron_class(neuron) or "")

    def synapse(self, neuron: nn.Module) -> Synapse | None:
        return None  # weights lie in layers before the neuron

    def recurrence(self, neuron: nn.Module) -> Recurrence | None:
        return None  # recurrence lies in containers around a neuron

    def _simulate(self, neuron: Any, currents: Tensor, visit: Visit) -> None:
        """Simulate a BaseNode, or the update of an integrator, whose forward takes all steps together."""
        if self.integrates(neuron):
            neuron.v = torch.zeros_like(currents[0])
            for current in currents:
                neuron.neuronal_charge(current)
                visit(neuron.v, neuron.v)
            return
        if not _BASES & _bases(neuron) or _NORMALISED in _bases(neuron):
            raise self._not_alone(neuron)
        self.reset(neuron)
        neuron.store_v_seq = False
        at_once = self.takes_sequences(neuron)
        for current in currents:
            # The class's forward, not the module's call, so that a user's hooks on the neuron don't fire.
            spikes = type(neuron).forward(neuron, current[None] if at_once else current)
            visit(spikes[0] if at_once else spikes, neuron.v)

    def reset(self, module: nn.Module) -> None:
        """Call the module's own ``reset``, as ``functional.reset_net`` does."""
        reset = getattr(module, "reset", None)
        if callable(reset):
            reset()

    def spikes(self, output: Any) -> Tensor:
        """Return the spikes, or the membranes of an integrator, which may return a list of all steps."""
        return torch.stack(output) if isinstance(output, list) else super().spikes(output)

    def membrane(self, neuron: nn.Module, output: Any) -> Tensor | None:
        """Return an integrator's list of all steps, else the stored membrane, of all steps only with ``store_v_seq=True``.

        None for an integrator that decodes its membrane.
        """
        if self.integrates(neuron):
            return self.spikes(output) if isinstance(output, list) else None
        stored = getattr(neuron, "v_seq" if self.takes_sequences(neuron) else "v", None)
        return stored if isinstance(stored, Tensor) and stored.shape == self.spikes(output).shape else None


def _bases(module: nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("spikingjelly.")}
