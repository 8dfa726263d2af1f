"""Tasks of hidden layers on small nets, and layers as samplers see them."""

from dataclasses import replace
from functools import partial

import norse.torch as norse
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.convex import make_loss
from snn_recon_plugin.hidden.gains import choose_gain, scale_parameters
from snn_recon_plugin.hidden.hidden_task import HiddenTask, TemporaryReadout, change_layers, make_temporary_readout
from snn_recon_plugin.hidden.neuron import measure_excitability
from snn_recon_plugin.hidden.recurrent import find_recurrent_layer, make_recurrent_site
from snn_recon_plugin.hidden.site import LayerSite
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch
from snn_recon_plugin.networks.private.parameters import with_values
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.networks.readout.resolve import resolve_readout
from snn_recon_plugin.networks.structure.inspect import inspect_network
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..helpers import HIDDEN, STEPS, loop_net, sequential_net, test_data, train_data
from ..nets import NorseRows, Once, normalised_net

OVER = over_time(STEPS)


def norse_net():
    torch.manual_seed(0)
    return norse.SequentialState(nn.Linear(64, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, 10), norse.LI())


def repeated(net, inputs):
    """Show an image at every step to multi-step layers."""
    outputs = net(inputs.expand(STEPS, *inputs.shape))
    return outputs[0] if isinstance(outputs, tuple) else outputs


# Nets whose hidden layer can be rebuilt: how to make one and how to call it.
NETS = {
    "loop": (loop_net, plain_forward),
    "once": (Once, plain_forward),
    "sequential": (sequential_net, OVER),
    "norse": (norse_net, repeated),
    "normalised": (normalised_net, OVER),
}


def write(values):
    for (module, name), value in values.items():
        getattr(module, name).data.copy_(value)


def negative(layer):
    """Make all weights and biases of a layer negative: no input from 0 to 1 makes a current."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.abs_().neg_()


def stored(inputs, size=100):
    return [StoredBatch(part, slice(k * size, k * size + len(part))) for k, part in enumerate(inputs.split(size))]


def spikes_of(net, inputs, layer, forward):
    """The spikes of a layer, ``[T, n, *]``."""
    seen = []
    CallRecorder(net, stored(inputs, len(inputs)), forward).visit_spikes(layer, seen.append)
    return torch.stack(seen)


def make_task(net, forward=plain_forward, count=200, size=100, kind="auto", labels=None, loss="squared_hinge", seed=0):
    """The task of a net's hidden layers, on some digits."""
    inputs, own = train_data(count)
    net_map = inspect_network(net, inputs[:20], forward)
    readout = resolve_readout(net, net_map, inputs[:20], forward=forward, kind=kind)
    temporary, targets = make_temporary_readout(readout), own if labels is None else labels
    return HiddenTask(CallRecorder(net, stored(inputs, size), forward), targets, net_map, readout, temporary, make_loss(loss), seed)


def choose(net, *args, **options):
    """The gains of a net's hidden layers on some digits, chosen on a copy, and the net's map."""
    copied = private_copy(net)
    with quiet(copied, seed=0):
        task = make_task(copied, *args, **options)
        decisions, _ = change_layers(task.net_map.hidden, partial(choose_gain, task))
    own = dict(zip(copied.modules(), net.modules(), strict=True))
    hidden = [replace(layer, synapse=own[layer.synapse], neuron=own[layer.neuron]) for layer in task.net_map.hidden]
    return decisions, replace(task.net_map, hidden=hidden)


def rates_of(net, net_map, decisions=(), forward=plain_forward, count=200):
    values, inputs = {}, train_data(count)[0]
    for layer, decision in zip(net_map.hidden, decisions, strict=False):
        values |= scale_parameters(layer, decision.gain)
    with quiet(net, seed=0), with_values(values):
        return [float(spikes_of(net, inputs, layer, forward).float().mean()) for layer in net_map.hidden]


def blobs(samples=120, inputs=8, classes=3):
    """Samples (n, inputs) around a centre for each class, and their classes."""
    labels = torch.arange(samples) % classes
    centres = 2 * torch.rand(classes, inputs, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 0.3 * torch.randn(samples, inputs, generator=torch.Generator().manual_seed(0)), labels


def make_site(bias=True, spikes=False, **options):
    """The site of a Linear before a Leaky."""
    inputs, labels = blobs(**options)
    inputs = (inputs > 1).float() if spikes else inputs
    return LayerSite(nn.Linear(8, 16, bias=bias), inputs, labels, measure_excitability(snn.Leaky(beta=0.9), 10, inputs), spikes)


def recurrent_layer(net):
    own = net.layers[0] if isinstance(net, NorseRows) else None
    return find_recurrent_layer(HiddenLayer("0", own, "0", own) if own else HiddenLayer("fc1", net.fc1, "lif1", net.lif1))


def see(net, count=100, size=50, temporary=None, labels=None):
    """The task of such a net and what samplers see of its layer; the last batch holds more samples than count."""
    inputs, own = test_data()
    labels = own if labels is None else labels
    parts = [StoredBatch(inputs[i : i + size], slice(i, min(i + size, count))) for i in range(0, count, size)]
    temporary = temporary or TemporaryReadout(torch.ones(1, STEPS), torch.ones(1))
    recorder = CallRecorder(net, parts, plain_forward)
    task = HiddenTask(recorder, labels[:count], None, None, temporary, None, samples=torch.arange(0, count, 2))
    return task, make_recurrent_site(task, recurrent_layer(net))
