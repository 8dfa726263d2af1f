"""Nets as scripts and tutorials with SpikingJelly write them: a step a call or all at once, reset by ``functional.reset_net``.

Builders of idioms take the output neuron: "LIF", or how an integrator decodes its membrane.
"""

from __future__ import annotations

from functools import partial

import torch
from spikingjelly.activation_based import encoding, functional, layer, neuron, surrogate
from torch import nn

from .data import CLASSES, HIDDEN, STEPS
from .record import DIGITS, Sizes

IF_NODE = partial(neuron.IFNode, surrogate_function=surrogate.ATan())
LIF_NODE = partial(neuron.LIFNode, surrogate_function=surrogate.ATan())


def in_mode(mode: str, *layers: nn.Module) -> nn.Sequential:
    net = nn.Sequential(*layers)
    functional.set_step_mode(net, mode)
    return net


def dense(*others: nn.Module, inputs=64, hidden=LIF_NODE, output=LIF_NODE, outputs=CLASSES):
    """Layers of a dense net; ``others`` follow the hidden neurons."""
    return layer.Linear(inputs, HIDDEN), hidden(), *others, layer.Linear(HIDDEN, outputs), output()


class Rates(nn.Module):
    """Firing rates of the output over steps that the input holds."""

    def __init__(self, *layers):
        super().__init__()
        self.fc = in_mode("m", *layers)

    def forward(self, x):
        return self.fc(x).mean(0)


def conv_layers(channels: tuple[int, int], outputs: int):
    """Layers of conv_fashion_mnist's CSNN for 8 x 8 images."""
    return (
        layer.Conv2d(1, channels[0], 3, padding=1, bias=False),
        layer.BatchNorm2d(channels[0]),
        IF_NODE(),
        layer.MaxPool2d(2, 2),
        layer.Conv2d(*channels, 3, padding=1, bias=False),
        layer.BatchNorm2d(channels[1]),
        IF_NODE(),
        layer.MaxPool2d(2, 2),
        layer.Flatten(),
        layer.Linear(4 * channels[1], outputs, bias=False),
    )


class CSNN(nn.Module):
    """conv_fashion_mnist: forward repeats the image, and returns firing rates."""

    def __init__(self, mode="m", steps=STEPS, channels=(8, 16), output=None):
        super().__init__()
        self.steps, self.mode = steps, mode
        self.conv_fc = in_mode(mode, *conv_layers(channels, CLASSES), IF_NODE() if output is None else output)

    def forward(self, x):
        if self.mode == "m":
            return self.conv_fc(x.unsqueeze(0).expand(self.steps, -1, -1, -1, -1)).mean(0)
        rate = self.conv_fc(x)
        for _ in range(1, self.steps):
            rate = rate + self.conv_fc(x)
        return rate / self.steps


def contained():
    """Layers of torch in containers that fold time and batch, neurons between them."""
    return in_mode(
        "m",
        layer.SeqToANNContainer(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        IF_NODE(),
        layer.SeqToANNContainer(nn.MaxPool2d(2, 2), nn.Flatten(), nn.Linear(8 * 4 * 4, CLASSES)),
        IF_NODE(),
    )


def feedback():
    """rsnn_sequential_fmnist: a row of the image a step, the spikes of a layer fed back into it."""
    inside = layer.LinearRecurrentContainer(IF_NODE(detach_reset=True), HIDDEN, HIDDEN)
    return Rates(layer.Linear(8, HIDDEN), inside, layer.Linear(HIDDEN, CLASSES), IF_NODE())


def filtered():
    """rsnn_sequential_fmnist: a learned synapse filter between the layers."""
    return Rates(*dense(layer.SynapseFilter(tau=2.0, learnable=True), inputs=8, hidden=IF_NODE, output=IF_NODE))


def learned_time_constants():
    """Neurons with a learned time constant, batch norm and dropout."""
    learned = partial(neuron.ParametricLIFNode, init_tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True)
    first, *others = dense(layer.Dropout(0.2), hidden=learned, output=learned)
    return in_mode("s", first, layer.BatchNorm1d(HIDDEN), *others)


def voting():
    """classify_dvsg: ten outputs vote for a class."""
    return in_mode("m", *dense(outputs=10 * CLASSES), layer.VotingLayer(10))


def lif_fc_mnist():
    return in_mode("s", layer.Flatten(), layer.Linear(64, CLASSES, bias=False), LIF_NODE(tau=2.0))


# -- how scripts run them -------------------------------------------------------------------------------------------------
def encode_and_step(net, images):
    """Firing rates: the encoder draws spikes in the script's loop."""
    encoder, rate = encoding.PoissonEncoder(), 0.0
    for _ in range(4 * STEPS):
        rate = rate + net(encoder(images))
    return rate / (4 * STEPS)


def reset_after(run):
    """The script resets the net behind each batch."""

    def run_and_reset(net, data):
        output = run(net, data)
        functional.reset_net(net)
        return output

    return run_and_reset


def step_through(net, data):
    return torch.stack([net(data) for _ in range(STEPS)])


def all_steps(net, data):
    return net(data.expand(STEPS, *data.shape))


# -- of idioms ------------------------------------------------------------------------------------------------------------
def _output(kind: str) -> nn.Module:
    return neuron.LIFNode() if kind == "LIF" else neuron.NonSpikingLIFNode(decode=kind)


def multi_step(output: str, sizes: Sizes = DIGITS):
    first, last = layer.Linear(sizes.inputs, sizes.hidden), layer.Linear(sizes.hidden, sizes.classes)
    return in_mode("m", first, neuron.LIFNode(), last, _output(output))


def single_step(output: str, sizes: Sizes = DIGITS):
    """A step in each call, but with an integrator, which takes all of them."""
    net = multi_step(output, sizes)
    functional.set_step_mode(net, "s" if output == "LIF" else "m")
    return net


def convolutions(output: str, sizes: Sizes = DIGITS):
    return in_mode("m", *conv_layers(sizes.channels, sizes.classes), _output(output))


def recurrent_container(output: str, sizes: Sizes = DIGITS):
    """A layer whose spikes return to it through a container around its neuron."""
    inside = layer.LinearRecurrentContainer(neuron.LIFNode(), sizes.hidden, sizes.hidden)
    first, last = layer.Linear(sizes.inputs, sizes.hidden), layer.Linear(sizes.hidden, sizes.classes)
    return in_mode("m", first, inside, last, _output(output))
