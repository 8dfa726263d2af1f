"""The nets of the study: hidden spiking neurons and a membrane without reset, which at each step is the change to the next value.

``step`` takes one value and the state; ``forward`` is the user's time loop over it, from a fresh state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

__all__ = ["NETS", "FeedForward", "Norse", "OfChanges", "Recurrent", "Stepped"]

LEAK, OUTPUT_LEAK = 0.9, 0.8
SLOPE = 25.0  # of snnTorch's tutorials; its default, an arc tangent, trains recurrent nets badly


class Stepped(nn.Module):
    """A net with a step; its ``forward`` takes (B, T, C) and returns the output's membranes, (T, B, C)."""

    def begin(self) -> Any:
        """Return a fresh state."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the output's membrane (B, C), and the state after it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        state, membranes = self.begin(), []
        for value in x.unbind(1):
            membrane, state = self.step(value, state)
            membranes.append(membrane)
        return torch.stack(membranes)


class OfChanges:
    """Prediction of the next value: this one, and the net's change times its scale."""

    def __init__(self, net: Stepped, scale: Tensor) -> None:
        self.net, self.scale = net, scale

    def begin(self) -> Any:
        return self.net.begin()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        change, state = self.net.step(x, state)
        return x + self.scale * change, state


class FeedForward(Stepped):
    """snnTorch: Linear, Leaky, Linear, Leaky without reset."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.neuron = nn.Linear(channels, hidden), snn.Leaky(beta=LEAK, spike_grad=surrogate.fast_sigmoid(SLOPE))
        self.readout, self.output = nn.Linear(hidden, channels), snn.Leaky(beta=OUTPUT_LEAK, reset_mechanism="none")

    def begin(self) -> Any:
        return self.neuron.reset_mem(), self.output.reset_mem()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        membrane, out = state
        spikes, membrane = self.neuron(self.hidden(x), membrane)
        _, out = self.output(self.readout(spikes), out)
        return out, (membrane, out)


class Recurrent(Stepped):
    """snnTorch: Linear, RLeaky from all to all, Linear, Leaky without reset."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.neuron = snn.RLeaky(beta=LEAK, all_to_all=True, linear_features=hidden, spike_grad=surrogate.fast_sigmoid(SLOPE))
        self.readout, self.output = nn.Linear(hidden, channels), snn.Leaky(beta=OUTPUT_LEAK, reset_mechanism="none")

    def begin(self) -> Any:
        return *self.neuron.reset_mem(), self.output.reset_mem()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        spikes, membrane, out = state
        spikes, membrane = self.neuron(self.hidden(x), spikes, membrane)
        _, out = self.output(self.readout(spikes), out)
        return out, (spikes, membrane, out)


class Norse(Stepped):
    """Norse, faster than by default, where synapses outlast several steps of these series: Linear, LIFCell, Linear, LICell."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        quick = torch.tensor(800.0)  # 1/s, steps of 1 ms
        self.hidden, self.neuron = nn.Linear(channels, hidden), norse.LIFCell(p=norse.LIFParameters(tau_syn_inv=quick))
        self.readout = nn.Linear(hidden, channels)
        self.output = norse.LICell(p=norse.LIParameters(tau_syn_inv=quick, tau_mem_inv=torch.tensor(200.0)))

    def begin(self) -> Any:
        return None, None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        membrane, out = state
        spikes, membrane = self.neuron(self.hidden(x), membrane)
        value, out = self.output(self.readout(spikes), out)
        return value, (membrane, out)


NETS: dict[str, Callable[[int, int], Stepped]] = {"feed-forward": FeedForward, "recurrent": Recurrent, "Norse": Norse}
