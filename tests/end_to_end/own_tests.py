"""Nets of the catalogue on scikit-learn's digits, and the accuracy as snnTorch's tutorials measure it."""

from dataclasses import replace

import snntorch.functional as SF
import torch
from torch import nn

from ..user_nets.record import Sizes
from ..user_nets.snntorch_nets import explicit_loop

STEPS = 12
SIZES = Sizes(steps=STEPS, hidden=48)


def loud(net):
    """Make the hidden layer fire as often as a trained one does, also within one step."""
    with torch.no_grad():
        next(module for module in net.modules() if isinstance(module, nn.Linear)).weight.mul_(5)
    return net


def loop_of(reset="subtract", **sizes):
    """Build a net that returns the spikes and membranes of all steps."""
    return explicit_loop(reset, replace(SIZES, **sizes))


def spikes_of(net, data):
    return net(data)[0]


def own_test(net, spikes, data, rows=slice(None), **population):
    inputs, labels = data
    with torch.no_grad():
        return SF.accuracy_rate(spikes(net, inputs[rows]), labels[rows], **population)
