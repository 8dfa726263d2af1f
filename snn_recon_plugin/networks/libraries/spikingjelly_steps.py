"""Stepper of SpikingJelly's IFNode, LIFNode and ParametricLIFNode in step mode "s": its own functions that take all steps."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from .stepper import Call, States, Stepper

_OPTIONS = {"IFNode": (), "LIFNode": ("tau", "decay_input"), "ParametricLIFNode": ("w", "decay_input")}
_FUNCTIONS = {"IFNode": "if_multi_step", "LIFNode": "lif_multi_step", "ParametricLIFNode": "plif_multi_step"}


def spikingjelly_stepper(neuron: Any, name: str) -> Stepper | None:
    """Return the stepper of a neuron of class ``name``, or None if its own code must run."""
    functions = sys.modules.get("spikingjelly.activation_based.functional")
    function = getattr(functions, _FUNCTIONS.get(name, ""), None)
    odd = neuron.store_v_seq or getattr(neuron, "_neuron_precision", None) is not None if function is not None else True
    return None if odd or neuron.step_mode != "s" else SpikingJellyStepper(neuron, function, _OPTIONS[name])


class SpikingJellyStepper(Stepper):
    """Steps of a membrane that is charged, compared with the threshold and reset at once.

    Args:
        neuron: of SpikingJelly.
        function: takes all steps.
        options: names of the neuron's attributes that it gets after the membrane.
    """

    def __init__(self, neuron: Any, function: Any, options: tuple[str, ...]) -> None:
        self.neuron, self.function, self.options = neuron, function, options

    def read(self, args: tuple[Any, ...]) -> Call | None:
        """Return the input and the stored membrane, at rest if it has none of its shape."""
        if len(args) != 1 or args[0].dtype != torch.float32 or args[0].dim() == 0:
            return None
        states = self.neuron.materialize_states(args, tuple(self.neuron._memories.values()), "s")
        return Call(args[0], tuple(states)) if len(states) == 1 else None

    def held(self, args: tuple[Any, ...]) -> States:
        """Return the stored membrane; none if the neuron is at rest."""
        return (self.neuron.v,) if isinstance(self.neuron.v, Tensor) else ()

    def rest(self) -> None:
        """Forget the membrane."""
        self.neuron.reset()

    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        """Take steps."""
        neuron = self.neuron
        options = [getattr(neuron, name) for name in self.options]
        inputs = x.expand(steps, *x.shape) if shared else x
        spikes, _, membranes = self.function(
            inputs, *states, *options, neuron.v_threshold, neuron.v_reset, neuron.surrogate_function, neuron.detach_reset, True
        )
        return spikes, (membranes,)

    def left(self, output: Any) -> States:
        """Return the stored membrane."""
        return (self.neuron.v,)

    def answer(self, spikes: Tensor, states: States) -> Any:
        """Store the membrane and return the spikes."""
        (self.neuron.v,) = states
        return spikes
