"""Nets whose training steps are timed, as users write them: dense, convolutional, recurrent, with one input or one a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn import functional

from snn_recon_plugin import over_time
from snn_recon_plugin.networks.calls.forward import Forward, plain_forward

BATCH = 128


class Steps(nn.Module):
    """Pairs of a synapse and a neuron in a time loop over one input, or over steps of it; returns what ``read`` takes."""

    def __init__(self, *pairs: tuple[nn.Module, nn.Module], steps: int = 25, axis: int | None = None, pool: int = 1) -> None:
        super().__init__()
        self.synapses = nn.ModuleList(synapse for synapse, _ in pairs)
        self.neurons = nn.ModuleList(neuron for _, neuron in pairs)
        self.steps, self.axis, self.pool = steps, axis, pool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states: list[Any] = [neuron.reset_mem() for neuron in self.neurons]
        spikes, membranes = [], []
        for step in range(self.steps):
            value = x if self.axis is None else x.select(self.axis, step)
            for number, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                current = synapse(value.flatten(1) if isinstance(synapse, nn.Linear) else value)
                if self.pool > 1 and current.dim() == 4:
                    current = functional.max_pool2d(current, self.pool)
                state = states[number] if isinstance(states[number], tuple) else (states[number],)
                value, *left = neuron(current, *state)
                states[number] = (value, *left) if isinstance(neuron, snn.RLeaky) else tuple(left)
            spikes.append(value)
            membranes.append(states[-1][-1])
        return torch.stack(spikes), torch.stack(membranes)


class NorseSteps(nn.Module):
    """Norse's cells in a time loop over one input, or over steps of it."""

    def __init__(self, *layers: nn.Module, steps: int = 25, axis: int | None = None) -> None:
        super().__init__()
        self.layers, self.steps, self.axis = norse.SequentialState(*layers), steps, axis

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for step in range(self.steps):
            membrane, state = self.layers(x if self.axis is None else x.select(self.axis, step), state)
            out.append(membrane)
        return torch.stack(out)


class NorseLayers(nn.Module):
    """Norse's layers, which take all steps at once."""

    def __init__(self, *layers: nn.Module, steps: int | None = None) -> None:
        super().__init__()
        self.layers, self.steps = norse.SequentialState(*layers), steps

    def forward(self, x: Tensor) -> Tensor:
        membranes: Tensor = self.layers(x.transpose(0, 1) if self.steps is None else x.expand(self.steps, *x.shape))[0]
        return membranes


@dataclass(frozen=True)
class Net:
    """A net of the table: how it is built, shape of its inputs, and its forward if the loop is outside."""

    kind: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    forward: Forward = plain_forward


def leaky(**options: Any) -> nn.Module:
    return snn.Leaky(**{"beta": 0.95, **options})


def dense(*sizes: int, neuron: Callable[[], nn.Module] = leaky, **options: Any) -> nn.Module:
    """Dense layers; the last neuron does not reset."""
    pairs = [(nn.Linear(one, two), neuron()) for one, two in itertools.pairwise(sizes)]
    return Steps(*pairs[:-1], (pairs[-1][0], leaky(reset_mechanism="none")), **options)


def recurrent(inputs: int, hidden: int, **options: Any) -> nn.Module:
    hidden_pair = nn.Linear(inputs, hidden), snn.RLeaky(beta=0.9, linear_features=hidden)
    return Steps(hidden_pair, (nn.Linear(hidden, 10), leaky(reset_mechanism="none")), **options)


def sequential(*norms: nn.Module) -> nn.Sequential:
    """Tutorial 6's net, its loop outside."""
    steep = {"beta": 0.5, "init_hidden": True, "spike_grad": surrogate.fast_sigmoid(slope=25)}
    first = [nn.Conv2d(1, 12, 5), *norms, nn.MaxPool2d(2), snn.Leaky(**steep), nn.Conv2d(12, 64, 5), nn.MaxPool2d(2)]
    return nn.Sequential(*first, snn.Leaky(**steep), nn.Flatten(), nn.Linear(1024, 10), snn.Leaky(**steep, output=True))


def convolutions(inputs: int = 1, **options: Any) -> nn.Module:
    """Tutorial 6's net with the loop in forward and pooling as a function."""
    pairs = (
        (nn.Conv2d(inputs, 12, 5), leaky(beta=0.5)),
        (nn.Conv2d(12, 64, 5), leaky(beta=0.5)),
        (nn.Linear(1024, 10), leaky(beta=0.5)),
    )
    return Steps(*pairs, pool=2, **options)


IMAGE, ROW = (BATCH, 784), (BATCH, 28, 28)
NETS: dict[str, Net] = {
    "tutorial 5, 784-1000-10, 25 steps": Net("dense", partial(dense, 784, 1000, 10), IMAGE),
    "784-300-10, 10 steps": Net("dense", partial(dense, 784, 300, 10, steps=10), IMAGE),
    "784-256-256-256-10": Net("dense", partial(dense, 784, 256, 256, 256, 10), IMAGE),
    "learned leaks and thresholds": Net(
        "dense", partial(dense, 784, 500, 10, neuron=partial(leaky, learn_beta=True, learn_threshold=True)), IMAGE
    ),
    "a leak a neuron": Net(
        "dense", lambda: dense(784, 500, 500, 10, neuron=lambda: leaky(beta=torch.linspace(0.5, 0.95, 500))), IMAGE
    ),
    "reset to zero": Net("dense", partial(dense, 784, 500, 10, neuron=partial(leaky, reset_mechanism="zero")), IMAGE),
    "Synaptic": Net("dense", partial(dense, 784, 500, 10, neuron=partial(snn.Synaptic, alpha=0.8, beta=0.9)), IMAGE),
    "fast sigmoid": Net("dense", partial(dense, 784, 500, 10, neuron=partial(leaky, spike_grad=surrogate.fast_sigmoid(25))), IMAGE),
    "Norse cells": Net(
        "dense", lambda: NorseSteps(nn.Linear(784, 500), norse.LIFCell(), nn.Linear(500, 10), norse.LICell()), IMAGE
    ),
    "Norse layers": Net(
        "dense", lambda: NorseLayers(nn.Linear(784, 500), norse.LIF(), nn.Linear(500, 10), norse.LI(), steps=25), IMAGE
    ),
    "tutorial 6, the loop outside": Net("convolutions", sequential, (BATCH, 1, 28, 28), over_time(25)),
    "tutorial 6, the loop in forward": Net("convolutions", convolutions, (BATCH, 1, 28, 28)),
    "tutorial 6 with batch norm": Net("convolutions", lambda: sequential(nn.BatchNorm2d(12)), (BATCH, 1, 28, 28), over_time(25)),
    "frames of events, convolutions": Net("convolutions", partial(convolutions, 2, steps=10, axis=0), (10, BATCH, 2, 28, 28)),
    "rate code, 784-500-10": Net("inputs a step", partial(dense, 784, 500, 10, axis=0), (25, BATCH, 784)),
    "rows, dense": Net("inputs a step", partial(dense, 28, 256, 10, steps=28, axis=1), ROW),
    "rows, RLeaky 256": Net("recurrent", partial(recurrent, 28, 256, steps=28, axis=1), ROW),
    "60 steps, RLeaky 128": Net("recurrent", partial(recurrent, 70, 128, steps=60, axis=1), (BATCH, 60, 70)),
    "rows, Norse recurrent cells": Net(
        "recurrent", lambda: NorseSteps(norse.LIFRecurrentCell(28, 256), nn.Linear(256, 10), norse.LICell(), steps=28, axis=1), ROW
    ),
    "rows, Norse recurrent layer": Net(
        "recurrent", lambda: NorseLayers(norse.LIFRecurrent(28, 256), nn.Linear(256, 10), norse.LI()), ROW
    ),
}
