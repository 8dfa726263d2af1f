"""Nets whose training steps are timed, as users write them: dense, convolutional, recurrent, with one input or one a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import spikegen, surrogate
from spikingjelly.activation_based import functional as jelly
from spikingjelly.activation_based import layer, neuron
from spikingjelly.activation_based import surrogate as surrogates
from torch import Tensor, nn

from benchmarks import nets
from benchmarks.nets import NorseLayers, NorseSteps, leaky, sequential
from snn_recon_plugin import over_time
from snn_recon_plugin.networks.calls.forward import Forward, plain_forward

BATCH = 128
dense, recurrent = (partial(make, both=True) for make in (nets.dense, nets.recurrent))
convolutions = partial(nets.convolutions, reset="subtract", both=True)


class JellyNet(nn.Module):
    """SpikingJelly's layers and neurons, which take a step a call, or all of them in step mode "m", whose input is repeated."""

    def __init__(self, *layers: nn.Module, mode: str = "m", steps: int = 25) -> None:
        super().__init__()
        self.net, self.mode, self.steps = nn.Sequential(*layers), mode, steps
        jelly.set_step_mode(self.net, mode)

    def forward(self, x: Tensor) -> Tensor:
        jelly.reset_net(self.net)
        if self.mode == "m":
            spikes: Tensor = self.net(x.unsqueeze(0).repeat(self.steps, *[1] * x.dim()))
            return spikes
        return torch.stack([self.net(x) for _ in range(self.steps)])


def jelly_dense(mode: str) -> JellyNet:
    """784-500-10."""
    nodes = (neuron.LIFNode(surrogate_function=surrogates.ATan()) for _ in range(2))
    return JellyNet(layer.Linear(784, 500), next(nodes), layer.Linear(500, 10), next(nodes), mode=mode)


def jelly_convolutions() -> JellyNet:
    """SpikingJelly's net for Fashion-MNIST with fewer channels."""
    blocks: list[nn.Module] = []
    for inputs in (1, 32):
        own = neuron.IFNode(surrogate_function=surrogates.ATan())
        blocks += [layer.Conv2d(inputs, 32, 3, padding=1, bias=False), layer.BatchNorm2d(32), own, layer.MaxPool2d(2)]
    return JellyNet(*blocks, layer.Flatten(), layer.Linear(32 * 49, 10), neuron.IFNode(), steps=4)


@dataclass(frozen=True)
class Net:
    """A net of the table: how it is built, shape of its inputs, and its forward if the loop is outside."""

    kind: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    forward: Forward = plain_forward


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
    "SpikingJelly, a step a call": Net("dense", partial(jelly_dense, "s"), IMAGE),
    "SpikingJelly, all steps in a call": Net("dense", partial(jelly_dense, "m"), IMAGE),
    "tutorial 6, the loop outside": Net("convolutions", sequential, (BATCH, 1, 28, 28), over_time(25)),
    "tutorial 6, the loop in forward": Net("convolutions", convolutions, (BATCH, 1, 28, 28)),
    "tutorial 6 with batch norm": Net("convolutions", lambda: sequential(nn.BatchNorm2d(12)), (BATCH, 1, 28, 28), over_time(25)),
    "frames of events, convolutions": Net("convolutions", partial(convolutions, 2, axis=0), (10, BATCH, 2, 28, 28)),
    "SpikingJelly, all steps in a call, convolutions": Net("convolutions", jelly_convolutions, (BATCH, 1, 28, 28)),
    "rate code, 784-500-10": Net("inputs a step", partial(dense, 784, 500, 10, axis=0), (25, BATCH, 784)),
    "spikegen.rate in the step, 784-500-10": Net(
        "inputs a step", partial(dense, 784, 500, 10, axis=0), IMAGE, lambda net, x: net(spikegen.rate(x, 25))
    ),
    "rows, dense": Net("inputs a step", partial(dense, 28, 256, 10, axis=1), ROW),
    "rows, RLeaky 256": Net("recurrent", partial(recurrent, 28, 256, axis=1), ROW),
    "60 steps, RLeaky 128": Net("recurrent", partial(recurrent, 70, 128, axis=1), (BATCH, 60, 70)),
    "rows, Norse recurrent cells": Net(
        "recurrent", lambda: NorseSteps(norse.LIFRecurrentCell(28, 256), nn.Linear(256, 10), norse.LICell(), axis=1), ROW
    ),
    "Norse's MNIST notebook, encoder and recurrent cells": Net(
        "recurrent",
        lambda: nn.Sequential(
            norse.ConstantCurrentLIFEncoder(32),
            NorseSteps(norse.LIFRecurrentCell(784, 100), nn.Linear(100, 10, bias=False), norse.LICell(), axis=0),
        ),
        IMAGE,
    ),
    "rows, Norse recurrent layer": Net(
        "recurrent", lambda: NorseLayers(norse.LIFRecurrent(28, 256), nn.Linear(256, 10), norse.LI()), ROW
    ),
}
