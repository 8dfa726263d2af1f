"""The catalogue of networks of the studies, as users write them, and how their outputs are read.

A net loops over time in ``forward`` and returns the membranes of its readout, (T, B, C), or spikes and membranes.  Initial
weights are those of the libraries, drawn from torch's generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn import functional

STEPS = 25
LEAK = 0.9  # of hidden neurons of nets on sequences
SLOPE = 25.0  # of snnTorch's tutorials; its default, an arc tangent, trains recurrent nets badly
Output = Tensor | tuple[Tensor, Tensor]


class Steps(nn.Module):
    """snnTorch: pairs of a synapse and a neuron in a time loop.

    Args:
        pairs: synapse and neuron of each layer.
        steps: for which an input is shown.
        axis: of the steps of an input that has some; None for one that is shown at every step.
        pool: size of the maxima that are taken of convolutions.
        both: return spikes and membranes; else membranes.
    """

    def __init__(
        self, *pairs: tuple[nn.Module, nn.Module], steps: int = STEPS, axis: int | None = None, pool: int = 1, both: bool = False
    ) -> None:
        super().__init__()
        self.synapses = nn.ModuleList(synapse for synapse, _ in pairs)
        self.neurons = nn.ModuleList(neuron for _, neuron in pairs)
        self.steps, self.axis, self.pool, self.both = steps, axis, pool, both

    def forward(self, x: Tensor) -> Output:
        states: list[Any] = [neuron.reset_mem() for neuron in self.neurons]
        spikes, membranes = [], []
        for shown in steps_of(x, self.steps, self.axis):
            value = shown
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                current = synapse(value.flatten(1) if isinstance(synapse, nn.Linear) else value)
                if self.pool > 1 and current.dim() == 4:
                    current = functional.max_pool2d(current, self.pool)
                state = states[number] if isinstance(states[number], tuple) else (states[number],)
                value, *left = neuron(current, *state)
                states[number] = (value, *left) if isinstance(neuron, snn.RLeaky) else tuple(left)
            spikes.append(value)
            membranes.append(states[-1][-1])
        return (torch.stack(spikes), torch.stack(membranes)) if self.both else torch.stack(membranes)


class Stepped(nn.Module):
    """snnTorch: layers whose neurons keep their states (``init_hidden``), Linear, and Leaky without reset."""

    def __init__(self, features: Iterable[nn.Module], width: int, beta: float, steps: int) -> None:
        super().__init__()
        self.features, self.fc, self.steps = nn.Sequential(*features), nn.Linear(width, 10), steps
        self.out = snn.Leaky(beta=beta, reset_mechanism="none", init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, snn.Leaky):
                module.reset_mem()
        return torch.stack([self.out(self.fc(self.features(x)))[1] for _ in range(self.steps)])


class NorseSteps(nn.Module):
    """Norse's cells in a time loop over one input, or over steps of it."""

    def __init__(self, *layers: nn.Module, steps: int = STEPS, axis: int | None = None) -> None:
        super().__init__()
        self.layers, self.steps, self.axis = norse.SequentialState(*layers), steps, axis

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for value in steps_of(x, self.steps, self.axis):
            membrane, state = self.layers(value, state)
            out.append(membrane)
        return torch.stack(out)


class NorseLayers(nn.Module):
    """Norse's layers, which take all steps at once: those of an input (B, T, D), or so many of one that is held still."""

    def __init__(self, *layers: nn.Module, steps: int | None = None, last: bool = False) -> None:
        super().__init__()
        self.layers, self.steps, self.last = norse.SequentialState(*layers), steps, last

    def forward(self, x: Tensor) -> Tensor:
        membranes: Tensor = self.layers(x.transpose(0, 1) if self.steps is None else x.expand(self.steps, *x.shape))[0]
        return membranes[-1] if self.last else membranes


def steps_of(x: Tensor, steps: int, axis: int | None) -> Iterable[Tensor]:
    """Return the input of each step."""
    return itertools.repeat(x, steps) if axis is None else x.unbind(axis)


def leaky(**options: Any) -> nn.Module:
    return snn.Leaky(**{"beta": 0.95, **options})


def dense(*sizes: int, neuron: Callable[[], nn.Module] = leaky, **options: Any) -> Steps:
    """Dense layers; the last neuron does not reset."""
    pairs = [(nn.Linear(one, two), neuron()) for one, two in itertools.pairwise(sizes)]
    return Steps(*pairs[:-1], (pairs[-1][0], leaky(reset_mechanism="none")), **options)


def recurrent(inputs: int, hidden: int, classes: int = 10, **options: Any) -> Steps:
    """A recurrent layer from all to all."""
    pair = nn.Linear(inputs, hidden), snn.RLeaky(beta=LEAK, linear_features=hidden)
    return Steps(pair, (nn.Linear(hidden, classes), leaky(reset_mechanism="none")), **options)


def convolutions(
    inputs: int = 1, channels: tuple[int, int] = (12, 64), beta: float = 0.5, reset: str = "none", **options: Any
) -> Steps:
    """The net of snnTorch's tutorial 6, 12C5-MP2-64C5-MP2-10."""
    pairs = (
        (nn.Conv2d(inputs, channels[0], 5), leaky(beta=beta)),
        (nn.Conv2d(*channels, 5), leaky(beta=beta)),
        (nn.Linear(16 * channels[1], 10), leaky(beta=beta, reset_mechanism=reset)),
    )
    return Steps(*pairs, pool=2, **options)


def of_pixels(net: nn.Module) -> nn.Module:
    """Let a net of images take rows of 784 pixels."""
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), net)


def sequential(*norms: nn.Module, **last: Any) -> nn.Sequential:
    """Tutorial 6's net for a loop outside; options of its last neurons."""
    options = {"beta": 0.5, "init_hidden": True, "spike_grad": surrogate.fast_sigmoid(slope=SLOPE)}
    first = [nn.Conv2d(1, 12, 5), *norms, nn.MaxPool2d(2), snn.Leaky(**options), nn.Conv2d(12, 64, 5), nn.MaxPool2d(2)]
    return nn.Sequential(*first, snn.Leaky(**options), nn.Flatten(), nn.Linear(1024, 10), snn.Leaky(**options, output=True, **last))


def tutorial_5() -> Steps:
    """The net of snnTorch's tutorial 5, 784-1000-10: its output neurons reset and spike."""
    return Steps((nn.Linear(784, 1000), leaky()), (nn.Linear(1000, 10), leaky()), both=True)


@torch.no_grad()
def silenced(net: Steps) -> Steps:
    """Make hidden weights and biases so small that no neuron spikes."""
    for parameter in net.synapses[:-1].parameters():
        parameter.div_(20.0)
    return net


SEQUENCE_NETS: dict[str, Callable[[int, int, int], nn.Module]] = {  # of inputs, hidden neurons and classes
    "snntorch-recurrent": partial(recurrent, axis=1),
    "snntorch-feedforward": partial(dense, neuron=partial(leaky, beta=LEAK), axis=1),
    "norse-recurrent": lambda inputs, hidden, classes: NorseSteps(
        norse.LIFRecurrentCell(inputs, hidden), nn.Linear(hidden, classes), norse.LICell(), axis=1
    ),
}
IMAGE_NETS: dict[str, Callable[[], nn.Module]] = {
    "784-1000-10": partial(dense, 784, 1000, 10),
    "784-1000-10, silent": lambda: silenced(dense(784, 1000, 10)),
    "784-256x5-10": partial(dense, 784, *[256] * 5, 10),
    "784-256x10-10": partial(dense, 784, *[256] * 10, 10),
    "conv": lambda: of_pixels(convolutions()),
    "Norse 784-1000-10": lambda: NorseLayers(
        nn.Linear(784, 1000), norse.LIF(), nn.Linear(1000, 10), norse.LI(), steps=STEPS, last=True
    ),
    "784-1000-10 spiking": tutorial_5,
}


def steep(net: nn.Module, slope: float = SLOPE) -> nn.Module:
    """Give snnTorch's neurons the surrogate gradient of its tutorials."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.spike_grad = surrogate.fast_sigmoid(slope=slope)
    return net


def scores_of(output: Output) -> Tensor:
    """(B, C): the count of output spikes, else the mean over time where there is time."""
    if isinstance(output, tuple):
        return output[0].sum(0)
    return output.mean(0) if output.dim() == 3 else output


def loss_of(output: Output, labels: Tensor) -> Tensor:
    """Cross-entropy of the scores; for spiking outputs of their membranes at every step, as in tutorial 5."""
    if isinstance(output, tuple):
        membranes = output[1]
        return functional.cross_entropy(membranes.flatten(0, 1), labels.repeat(len(membranes)))
    return functional.cross_entropy(scores_of(output), labels)


def train_epochs(net: nn.Module, loader: Iterable[Any], epochs: int = 1, rate: float = 1e-3) -> list[float]:
    """Train by Adam, as tutorials do; return the loss of each step."""
    optimizer, losses = torch.optim.Adam(net.parameters(), rate), []
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = loss_of(net(inputs), labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor, scores: Callable[[Tensor], Tensor] | None = None) -> float:
    """Share of samples whose score is the largest at their class; ``scores`` gives those of inputs, else what the net returns."""
    read, mode = scores or (lambda part: scores_of(net(part))), net.training
    net.eval()
    predicted = torch.cat([read(part).argmax(1) for part in inputs.split(500)])
    net.train(mode)
    return float((predicted == labels).double().mean())
