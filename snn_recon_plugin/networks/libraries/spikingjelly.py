"""SpikingJelly's neurons, of ``spikingjelly.activation_based``.

A neuron takes one step a call in ``step_mode="s"``, and all of them in ``"m"``.  In both it keeps its state until
``functional.reset_net``.  A step charges the membrane, compares it with the threshold and resets it at once: the stored membrane is
the one after the reset.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from .library import Dynamics, Library, Recurrence, States, Stepper, Synapse, Visit

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
        return getattr(module, "step_mode", None) == "m" or _ALL_STEPS in self._bases(module)

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
        name = self._neuron_class(neuron) or ""
        function = getattr(sys.modules.get("spikingjelly.activation_based.functional"), _FUNCTIONS.get(name, ""), None)
        odd = function is None or neuron.store_v_seq or getattr(neuron, "_neuron_precision", None) is not None
        return None if odd or neuron.step_mode != "s" else SpikingJellyStepper(neuron, function, _OPTIONS[name])

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
        if not _BASES & self._bases(neuron) or _NORMALISED in self._bases(neuron):
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


# -- several steps at once: its own functions that take all of them ---------------------------------------------------------------

# Names of the neuron's attributes that its function gets after the membrane.
_OPTIONS = {"IFNode": (), "LIFNode": ("tau", "decay_input"), "ParametricLIFNode": ("w", "decay_input")}
_FUNCTIONS = {"IFNode": "if_multi_step", "LIFNode": "lif_multi_step", "ParametricLIFNode": "plif_multi_step"}


class SpikingJellyStepper(Stepper):
    """Steps of a membrane that is charged, compared with the threshold and reset at once."""

    def __init__(self, neuron: Any, function: Any, options: tuple[str, ...]) -> None:
        self.neuron, self.function, self.options = neuron, function, options

    def read(self, args: tuple[Any, ...]) -> tuple[Tensor, States] | None:
        """Return the input and the stored membrane, at rest if it has none of its shape."""
        if len(args) != 1 or args[0].dtype != torch.float32 or args[0].dim() == 0:
            return None
        states = self.neuron.materialize_states(args, tuple(self.neuron._memories.values()), "s")
        return (args[0], tuple(states)) if len(states) == 1 else None

    def held(self, args: tuple[Any, ...]) -> States:
        """Return the stored membrane; none if the neuron is at rest."""
        return (self.neuron.v,) if isinstance(self.neuron.v, Tensor) else ()

    def rest(self) -> None:
        """Forget the membrane."""
        self.neuron.reset()

    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        neuron = self.neuron
        options = [getattr(neuron, name) for name in self.options]
        inputs = x.expand(steps, *x.shape) if shared else x
        spikes, _, membranes = self.function(
            inputs, *states, *options, neuron.v_threshold, neuron.v_reset, neuron.surrogate_function, neuron.detach_reset, True
        )
        return spikes, (membranes,)

    def left(self, output: Any) -> States:
        return (self.neuron.v,)

    def answer(self, spikes: Tensor, states: States) -> Any:
        """Store the membrane and return the spikes."""
        (self.neuron.v,) = states
        return spikes
