"""A library of neurons that only the tests know, in the manner of SpikingJelly, and what the package must know of it."""

import torch
from torch import nn

from snn_recon_plugin.networks.libraries.library import Dynamics, Library


class Module(nn.Module):
    """Base of all that keeps a state until it is reset; one call takes a step, or all steps in mode "m"."""

    __module__ = "jelly.base"

    def __init__(self, mode="s"):
        super().__init__()
        self.mode, self.state = mode, None

    def reset(self):
        self.state = None

    def forward(self, value):
        return torch.stack([self.step(each) for each in value]) if self.mode == "m" else self.step(value)


class Spiking(Module):
    """A leaky neuron that is reset in the step of its spike: to 0, or by its threshold."""

    __module__ = "jelly.neuron"

    def __init__(self, mode="s", tau=2.0, threshold=1.0, subtract=False):
        super().__init__(mode)
        self.tau, self.threshold, self.subtract = tau, threshold, subtract

    def step(self, current):
        charged = current / self.tau + (0 if self.state is None else (1 - 1 / self.tau) * self.state)
        spikes = (charged > self.threshold).float()
        self.state = charged - spikes * self.threshold if self.subtract else charged * (1 - spikes)
        return spikes


class Reading(Module):
    """A leaky integrator, whose output is its membrane."""

    __module__ = "jelly.neuron"

    def step(self, current):
        self.state = current if self.state is None else 0.5 * self.state + current
        return self.state


class Mask(Module):
    """A helper with a state: it drops the same inputs at all steps until it is reset."""

    __module__ = "jelly.layer"

    def step(self, value):
        self.state = (torch.rand_like(value) > 0.1).float() if self.state is None else self.state
        return value * self.state


class Jelly(Library):
    """Jelly: neurons that store their state, and take one step or all of them by their mode."""

    name = "jelly"
    packages = ("jelly.neuron",)
    title = "Jelly"
    example = "jelly.Spiking()"
    integrator = "jelly.Reading()"
    loop = ("{}.reset()", "spikes = {}(current)")
    known_alone = "Spiking, Reading"
    known_dynamics = "a Spiking neuron of Jelly"

    def takes_sequences(self, neuron):
        return neuron.mode == "m"

    def integrates(self, neuron):
        return self._neuron_class(neuron) == "Reading"

    def keeps_state(self, neuron):
        return True

    def unit_thresholds(self, neuron):
        return None if self.integrates(neuron) else torch.as_tensor(neuron.threshold)

    def dynamics(self, neuron):
        if self.integrates(neuron):
            raise self._unknown_dynamics("a Reading neuron")
        kept, threshold = 1 - 1 / neuron.tau, neuron.threshold
        return Dynamics(
            leak=kept,
            gain=1 / neuron.tau,
            threshold=threshold,
            subtract=kept * threshold if neuron.subtract else 0.0,
            reset=None if neuron.subtract else 0.0,
        )

    def synapse(self, neuron):
        return None

    def recurrence(self, neuron):
        return None

    def _simulate(self, neuron, currents, visit):
        self.reset(neuron)
        for current in currents:
            visit(neuron.step(current), neuron.state)

    def reset(self, module):
        module.reset()

    def membrane(self, neuron, output):
        return output if self.integrates(neuron) else None if self.takes_sequences(neuron) else neuron.state
