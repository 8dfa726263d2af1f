"""snnTorch's nets of the catalogue on scikit-learn's digits, and users' own tests of them."""

from dataclasses import replace

import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn

from benchmarks.idioms_common import DIGITS
from benchmarks.idioms_snntorch import ExplicitLoop

STEPS = 12
SIZES = replace(DIGITS, steps=STEPS, hidden=48)


def loud(net):
    """Make the hidden layer fire as often as a trained one does, also within one step."""
    with torch.no_grad():
        next(module for module in net.modules() if isinstance(module, nn.Linear)).weight.mul_(5)
    return net


def loop_of(reset="subtract", **sizes):
    """Build a net that returns the spikes and membranes of all steps."""
    return ExplicitLoop(reset, replace(SIZES, **sizes))


def forward_pass(net, data, num_steps=STEPS):
    """Step a net from outside, as tutorial 7 does."""
    for module in net.modules():
        if isinstance(module, snn.Leaky):
            module.reset_mem()
    return torch.stack([net(data)[0] for _ in range(num_steps)])


def spikes_of(net, data):
    return net(data)[0]


def states_of(net, data):
    return net(data.expand(STEPS, *data.shape))[0]


def own_test(net, spikes, data, rows=slice(None), **population):
    """The accuracy as the tutorials measure it."""
    inputs, labels = data
    with torch.no_grad():
        return SF.accuracy_rate(spikes(net, inputs[rows]), labels[rows], **population)
