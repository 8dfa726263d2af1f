"""The nets of the study, as users write them: a time loop in ``forward``, which returns the output membranes, (T, B, C).

The readout is the mean of a membrane that never resets. Initial weights are those of the libraries, after ``torch.manual_seed``.
"""

from __future__ import annotations

from collections.abc import Callable

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn

__all__ = ["NETS", "accuracy", "is_recurrent"]

LEAK, OUTPUT_LEAK = 0.9, 0.95


class FeedForward(nn.Module):
    """snnTorch: Linear, Leaky, Linear, Leaky without reset."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.neuron = nn.Linear(inputs, hidden), snn.Leaky(beta=LEAK)
        self.readout, self.output = nn.Linear(hidden, classes), snn.Leaky(beta=OUTPUT_LEAK, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        membrane, out, membranes = self.neuron.reset_mem(), self.output.reset_mem(), []
        for step in x.unbind(1):
            spikes, membrane = self.neuron(self.hidden(step), membrane)
            _, out = self.output(self.readout(spikes), out)
            membranes.append(out)
        return torch.stack(membranes)


class Recurrent(nn.Module):
    """snnTorch: Linear, RLeaky from all to all, Linear, Leaky without reset."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.neuron = nn.Linear(inputs, hidden), snn.RLeaky(beta=LEAK, all_to_all=True, linear_features=hidden)
        self.readout, self.output = nn.Linear(hidden, classes), snn.Leaky(beta=OUTPUT_LEAK, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        (spikes, membrane), out, membranes = self.neuron.reset_mem(), self.output.reset_mem(), []
        for step in x.unbind(1):
            spikes, membrane = self.neuron(self.hidden(step), spikes, membrane)
            _, out = self.output(self.readout(spikes), out)
            membranes.append(out)
        return torch.stack(membranes)


class NorseFeedForward(nn.Module):
    """Norse, its default time constants: Linear, LIFCell, Linear, LICell."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.neuron = nn.Linear(inputs, hidden), norse.LIFCell()
        self.readout, self.output = nn.Linear(hidden, classes), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        state, out, membranes = None, None, []
        for step in x.unbind(1):
            spikes, state = self.neuron(self.hidden(step), state)
            membrane, out = self.output(self.readout(spikes), out)
            membranes.append(membrane)
        return torch.stack(membranes)


class NorseRecurrent(nn.Module):
    """Norse, its default time constants: LIFRecurrentCell, Linear, LICell."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.neuron = norse.LIFRecurrentCell(inputs, hidden)
        self.readout, self.output = nn.Linear(hidden, classes), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        state, out, membranes = None, None, []
        for step in x.unbind(1):
            spikes, state = self.neuron(step, state)
            membrane, out = self.output(self.readout(spikes), out)
            membranes.append(membrane)
        return torch.stack(membranes)


NETS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "snntorch-recurrent": Recurrent,
    "snntorch-feedforward": FeedForward,
    "norse-recurrent": NorseRecurrent,
    "norse-feedforward": NorseFeedForward,
}


def is_recurrent(name: str) -> bool:
    """Return whether a net of ``NETS`` feeds its hidden spikes back."""
    return name.endswith("-recurrent")


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest mean membrane is that of their class."""
    predicted = torch.cat([net(part).mean(0).argmax(1) for part in inputs.split(500)])
    return float((predicted == labels).double().mean())
