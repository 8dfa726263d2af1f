"""Nets whose hidden layers can be rebuilt, and the task of a net's hidden layers."""

from dataclasses import replace
from functools import partial

import norse.torch as norse
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.hidden import HiddenTask, change_layers, choose_gain, make_temporary_readout, scale_parameters
from snn_recon_plugin.networks import (
    StoredBatch,
    inspect_network,
    neuron_spikes,
    over_time,
    plain_forward,
    private_copy,
    quiet,
    resolve_readout,
    trying,
)

from ..helpers import HIDDEN, STEPS, Loop, conv_net, loop_net, sequential_net, train_data

OVER = over_time(STEPS)


class Steps(nn.Module):
    """Shows a static input at every step to multi-step layers; time first, or second inside."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = norse.SequentialState(*layers)

    def forward(self, x):
        return self.layers(x.expand(STEPS, *x.shape))[0]


class Once(Loop):
    """Computes the static current once, outside the time loop."""

    def forward(self, x):
        mem1, mem2, membranes, current = self.lif1.reset_mem(), self.lif2.reset_mem(), [], self.fc1(x)
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(current, mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def norse_net():
    torch.manual_seed(0)
    return Steps(nn.Linear(64, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, 10), norse.LI())


def normalised():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, 10),
        snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none"),
    )
    net[1].running_var.fill_(0.25)  # the same for all: each row is treated alike
    return net


# How to make a net and how to call it.
NETS = {
    "loop": (loop_net, plain_forward),
    "once": (Once, plain_forward),
    "sequential": (sequential_net, OVER),
    "norse": (norse_net, plain_forward),
    "normalised": (normalised, OVER),
    "conv": (conv_net, plain_forward),
}


def stored(inputs, size=100):
    """The inputs in batches."""
    return [StoredBatch(part, slice(k * size, k * size + len(part))) for k, part in enumerate(inputs.split(size))]


def make_task(net, forward=plain_forward, count=200, size=100, kind="auto", labels=None, loss="cross_entropy", seed=0):
    """The task of a net's hidden layers, on some digits."""
    inputs, own = train_data(count)
    net_map = inspect_network(net, inputs[:20], forward)
    readout = resolve_readout(net, net_map, inputs[:20], forward, kind)
    temporary, targets = make_temporary_readout(readout), own if labels is None else labels
    return HiddenTask(net, stored(inputs, size), targets, net_map, readout, forward, temporary, make_loss(loss), seed)


def choose(net, *args, **options):
    """The gains of a net's hidden layers on some digits, chosen on a copy, and the net's map."""
    copied = private_copy(net)
    with quiet(copied, seed=0):
        task = make_task(copied, *args, **options)
        decisions, _ = change_layers(task, partial(choose_gain, task))
    own = dict(zip(copied.modules(), net.modules(), strict=True))
    hidden = [replace(layer, synapse=own[layer.synapse], neuron=own[layer.neuron]) for layer in task.net_map.hidden]
    return decisions, replace(task.net_map, hidden=hidden)


def try_gains(net, *args, **options):
    """Choose a gain for each hidden layer, and write none."""
    with quiet(net, seed=0):
        task = make_task(net, *args, **options)
        return [choose_gain(task, number) for number in range(len(task.net_map.hidden))]


def rates_of(net, net_map, decisions=(), forward=plain_forward, count=200):
    """The firing rate of each hidden layer with the gains of some decisions, on some digits."""
    values, inputs = {}, train_data(count)[0]
    for layer, decision in zip(net_map.hidden, decisions, strict=False):
        values |= scale_parameters(layer, decision.gain)
    with quiet(net, seed=0), trying(values):
        return [float(neuron_spikes(net, stored(inputs), layer, forward).float().mean()) for layer in net_map.hidden]
